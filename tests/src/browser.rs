//! Headless Chromium through its WebDriver, as a person would use it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    BrowserLogEntry, By, ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver, WebElement,
};
use tokio::{process::Command, time::timeout};

use crate::{artefacts, process::Process, wait};

/// How long a page may take to show what a test looks for.
pub const PAGE_LIMIT: Duration = Duration::from_secs(20);
const EXPLAIN_LIMIT: Duration = Duration::from_secs(5);
const DRIVER_LIMIT: Duration = Duration::from_secs(30);
/// The longest that one script may run: a download of 200 MB in a development build on a busy machine.
const SCRIPT_LIMIT: Duration = Duration::from_secs(240);

/// A telephone and a desk, as the dashboard has to be good at both.
pub const PHONE: (u32, u32) = (390, 844);
pub const DESK: (u32, u32) = (1440, 900);

const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
];

#[derive(Debug)]
pub struct Browser {
    driver: WebDriver,
    profile: TempDir,
    downloads: PathBuf,
    name: String,
    opened: Instant,
    _chromedriver: Process,
}

/// Chromium gives a page up that is loading when an interface of the machine comes or goes, as those of containers do.
const NETWORK_CHANGES_MAX: usize = 5;

impl Browser {
    /// A browser that has never been anywhere. `name` is that of its pictures.
    ///
    /// # Errors
    /// Where Chromium or its driver is missing or does not start.
    pub async fn open(name: &str) -> Result<Self> {
        Self::open_with(name, &[]).await
    }

    /// As [`Self::open`], with further flags on Chromium's command line.
    pub async fn open_with(name: &str, flags: &[&str]) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let downloads = profile.path().join("downloads");
        std::fs::create_dir(&downloads)?;
        let log = profile.path().join("chromedriver.log");
        let driver = ["/usr/bin/chromedriver", "/snap/bin/chromium.chromedriver"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let mut command = Command::new(driver.unwrap_or("chromedriver"));
        let chromedriver = Process::spawn(command.arg("--port=0"), &log).context("start chromedriver")?;
        let port = wait::until("chromedriver", DRIVER_LIMIT, async || {
            let output = chromedriver.output();
            let Some((_, rest)) = output.split_once("started successfully on port ") else { return Ok(None) };
            Ok(Some(rest.trim_end().trim_end_matches('.').parse::<u16>()?))
        })
        .await?;

        let mut capabilities = DesiredCapabilities::chrome();
        for flag in FLAGS.iter().chain(flags) {
            capabilities.add_arg(flag)?;
        }
        capabilities.add_arg(&format!("--user-data-dir={}", profile.path().join("profile").display()))?;
        capabilities.add_arg(&format!("--window-size={},{}", DESK.0, DESK.1))?;
        capabilities.set_browser_log_level(LoggingPrefsLogLevel::All)?;
        let driver = WebDriver::builder(format!("http://127.0.0.1:{port}"), capabilities)
            .request_timeout(SCRIPT_LIMIT + PAGE_LIMIT)
            .connect()
            .await
            .context("start Chromium")?;
        driver.set_script_timeout(SCRIPT_LIMIT).await?;
        driver.set_page_load_timeout(PAGE_LIMIT).await?;
        let (name, opened) = (name.to_owned(), Instant::now());
        let browser = Self { driver, profile, downloads, name, opened, _chromedriver: chromedriver };
        browser
            .devtools("Browser.setDownloadBehavior", json!({"behavior": "allow", "downloadPath": browser.downloads}))
            .await?;
        Ok(browser)
    }

    pub async fn goto(&self, url: &str) -> Result<()> {
        self.step(&format!("goes to {url}"));
        self.driver.enter_default_frame().await?;
        for _ in 0..NETWORK_CHANGES_MAX {
            self.driver.goto(url).await.with_context(|| format!("open {url}"))?;
            let changed: bool = self
                .js(
                    "return location.protocol === 'chrome-error:' && document.body.innerText.includes('ERR_NETWORK_CHANGED')",
                    &[],
                )
                .await?;
            if !changed {
                return Ok(());
            }
            self.step("goes there again: a container's interface came or went meanwhile");
        }
        bail!("open {url}: the network changes all the time")
    }

    pub async fn reload(&self) -> Result<()> {
        self.step("reloads");
        self.driver.enter_default_frame().await?;
        Ok(self.driver.refresh().await?)
    }

    pub async fn back(&self) -> Result<()> {
        self.driver.enter_default_frame().await?;
        Ok(self.driver.back().await?)
    }

    /// Of the page that the address bar shows.
    pub async fn url(&self) -> Result<String> {
        Ok(self.driver.current_url().await?.to_string())
    }

    pub async fn title(&self) -> Result<String> {
        Ok(self.driver.title().await?)
    }

    /// The element, as soon as it is there.
    ///
    /// # Errors
    /// With a picture of the page, if it is not there in [`PAGE_LIMIT`].
    pub async fn find(&self, css: &str) -> Result<WebElement> {
        self.step(&format!("looks for `{css}`"));
        let found = wait::until(format!("`{css}`"), PAGE_LIMIT, async || {
            Ok(self.driver.find_all(By::Css(css)).await?.into_iter().next())
        })
        .await;
        self.explain(found).await
    }

    pub async fn count(&self, css: &str) -> Result<usize> {
        Ok(self.driver.find_all(By::Css(css)).await?.len())
    }

    pub async fn click(&self, css: &str) -> Result<()> {
        self.step(&format!("clicks `{css}`"));
        let clicked = wait::until(format!("a click on `{css}`"), PAGE_LIMIT, async || {
            let Some(element) = self.driver.find_all(By::Css(css)).await?.into_iter().next() else { return Ok(None) };
            Ok(Some(element.click().await?))
        })
        .await;
        self.explain(clicked).await
    }

    pub async fn type_into(&self, css: &str, text: &str) -> Result<()> {
        Ok(self.find(css).await?.send_keys(text).await?)
    }

    /// Waits until the first element shows a text that holds `wanted`, and returns all of the text.
    pub async fn sees(&self, css: &str, wanted: &str) -> Result<String> {
        self.sees_within(css, wanted, PAGE_LIMIT).await
    }

    pub async fn sees_within(&self, css: &str, wanted: &str, limit: Duration) -> Result<String> {
        self.step(&format!("looks for `{wanted}` in `{css}`"));
        let mut last = String::new();
        let seen = wait::until(format!("`{css}` to show `{wanted}`"), limit, async || {
            let Some(element) = self.driver.find_all(By::Css(css)).await?.into_iter().next() else { return Ok(None) };
            last = element.text().await?;
            Ok(last.contains(wanted).then(|| last.clone()))
        })
        .await;
        self.explain(seen.with_context(|| format!("it shows `{last}`"))).await
    }

    /// Runs the body of an async function in the frame that was entered last; its arguments are in `arguments`.
    pub async fn js<T: DeserializeOwned>(&self, body: &str, arguments: &[Value]) -> Result<T> {
        self.step(&format!("runs `{}`", body.split_whitespace().take(8).collect::<Vec<_>>().join(" ")));
        let script = format!("return (async (...arguments) => {{ {body} }})(...arguments)");
        let answer = self.driver.execute(script, arguments.to_vec()).await.with_context(|| format!("run `{body}`"))?;
        let value = answer.json().clone();
        serde_json::from_value(value.clone()).with_context(|| format!("`{body}` returned {value}"))
    }

    /// Enters the frame that shows the service, from the page around it, once the service's own document is in it.
    pub async fn enter_app(&self) -> Result<()> {
        self.step("enters the service's frame");
        let entered = wait::holds("the service's frame", PAGE_LIMIT, async || self.try_to_enter().await).await;
        self.explain(entered).await
    }

    /// Enters the service's frame once its document has an element, however often it is loaded anew until then.
    pub async fn enter_app_at(&self, css: &str) -> Result<()> {
        self.step(&format!("enters the service's frame at `{css}`"));
        let entered = wait::holds(format!("`{css}` in the service's frame"), PAGE_LIMIT, async || {
            Ok(self.try_to_enter().await? && self.count(css).await? > 0)
        })
        .await;
        self.explain(entered).await
    }

    async fn try_to_enter(&self) -> Result<bool> {
        self.driver.enter_default_frame().await?;
        for frame in self.driver.find_all(By::Css("iframe")).await? {
            // The connector's frame is of another origin, where `contentDocument` is null.
            let script = "const inner = arguments[0].contentDocument;
                return Boolean(inner && inner.location.href !== 'about:blank' && inner.readyState !== 'loading' && inner.body)";
            let ready = self.driver.execute(script, vec![frame.to_json()?]).await?.convert::<bool>()?;
            if ready {
                frame.enter_frame().await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Back to the page that the address bar shows.
    pub async fn leave_frames(&self) -> Result<()> {
        Ok(self.driver.enter_default_frame().await?)
    }

    pub fn driver(&self) -> &WebDriver {
        &self.driver
    }

    pub async fn resize(&self, (width, height): (u32, u32)) -> Result<()> {
        // A window can't be as narrow as a telephone; the device's metrics can.
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await?;
        Ok(())
    }

    /// `light` or `dark`.
    pub async fn prefer_colours(&self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await?;
        Ok(())
    }

    pub async fn devtools(&self, command: &str, arguments: Value) -> Result<Value> {
        self.driver.cdp().send_raw(command, arguments).await.with_context(|| command.to_owned())
    }

    /// Leaves a picture in `target/e2e`.
    pub async fn picture(&self, of: &str) -> Result<PathBuf> {
        self.step(&format!("takes a picture of {of}"));
        // Colours that are just changing are nobody's.
        let still =
            "await Promise.race([Promise.all(document.getAnimations().map((it) => it.finished.catch(() => {}))),
            new Promise((done) => setTimeout(done, 500))])";
        let _ =
            timeout(EXPLAIN_LIMIT, self.driver.execute(format!("return (async () => {{ {still} }})()"), vec![])).await;
        let path = artefacts().join(format!("{}-{of}.png", self.name));
        self.driver.screenshot(&path).await?;
        Ok(path)
    }

    /// A file that the browser has saved, once it is whole.
    pub async fn downloaded(&self, name: &str, limit: Duration) -> Result<PathBuf> {
        self.step(&format!("waits for {name}"));
        let path = self.downloads.join(name);
        wait::holds(format!("{name} to be saved"), limit, async || Ok(path.is_file())).await?;
        Ok(path)
    }

    /// A path for a file of this browser's own, gone with it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.profile.path().join(name)
    }

    /// What pages have written to the console since this was last asked.
    pub async fn console(&self) -> Result<Vec<BrowserLogEntry>> {
        Ok(self.driver.browser_log().await?)
    }

    /// # Errors
    /// Where a page has logged an error since the console was last read.
    pub async fn no_console_errors(&self) -> Result<()> {
        self.no_console_errors_but("\0").await
    }

    /// As [`Self::no_console_errors`], where one is wanted: that which holds `wanted`.
    pub async fn no_console_errors_but(&self, wanted: &str) -> Result<()> {
        let mut errors = self.console().await?;
        errors.retain(|entry| entry.level == "SEVERE" && !entry.message.contains(wanted));
        ensure!(errors.is_empty(), "the console holds errors: {errors:#?}");
        Ok(())
    }

    pub async fn close(self) -> Result<()> {
        self.driver.clone().quit().await?;
        Ok(())
    }

    /// What the test did and when, which is shown if it fails.
    fn step(&self, what: &str) {
        eprintln!("{:7.2} {} {what}", self.opened.elapsed().as_secs_f64(), self.name);
    }

    /// Adds to an error what the browser shows.
    async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let picture =
            self.picture("failed").await.map_or_else(|error| error.to_string(), |path| path.display().to_string());
        let url = self.url().await.unwrap_or_default();
        let text = "return document.body ? document.body.innerText.slice(0, 2000) : ''";
        // A page that hangs can't say anything.
        let text = timeout(EXPLAIN_LIMIT, self.js::<String>(text, &[])).await.ok().and_then(Result::ok);
        let console = self.console().await.unwrap_or_default();
        let console: Vec<_> =
            console.iter().rev().take(20).map(|entry| format!("{}: {}", entry.level, entry.message)).collect();
        Err(error).with_context(|| {
            format!("at {url}, pictured in {picture}\ntext: {}\nconsole: {console:#?}", text.unwrap_or_default())
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Else the driver is asked to end its session, for as long as a script may run, when both are gone already.
        let _ = self.driver.clone().leak();
        // Ending the driver leaves the browser, so it is found by its profile, which no other has.
        let mark = self.profile.path().display().to_string();
        let _ = end_all_with(&mark);
    }
}

/// Kills processes that were started with a mark of ours on their command line.
fn end_all_with(mark: &str) -> Result<()> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if String::from_utf8_lossy(&command).contains(mark) {
            let status =
                std::process::Command::new("kill").args(["-KILL", pid]).stderr(std::process::Stdio::null()).status()?;
            if !status.success() {
                bail!("kill {pid} failed");
            }
        }
    }
    Ok(())
}
