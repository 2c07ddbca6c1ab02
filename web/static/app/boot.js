// Before the first paint: the chosen appearance (dashboard/theme.rs). After it: a sentence if the program does not arrive.
try {
  const theme = localStorage.getItem("flotilla-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's appearance it is.
}

function tellThatItDoesNotLoad() {
  // Gone once the program has taken the page over.
  const sentence = document.getElementById("boot-slow");
  if (sentence) sentence.hidden = false;
}

// Longer than the few hundred kilobytes take on a slow mobile connection.
setTimeout(tellThatItDoesNotLoad, 20000);
addEventListener("error", (event) => {
  if (event.target instanceof HTMLScriptElement) tellThatItDoesNotLoad();
}, true);
addEventListener("unhandledrejection", tellThatItDoesNotLoad);

// An invitation that is opened in a tab where this page already stands changes the fragment alone: begin anew with it.
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#invite=")) location.reload();
});
