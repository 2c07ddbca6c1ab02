// Asks over and over who answers, and keeps the tally. Without it each reload of the page asks once.
'use strict';

// A person notices a pause that is about this long. Milliseconds.
const EVERY = 200;
// An answer that is not there by then has failed. Milliseconds.
const PATIENCE = 2000;
const TINTS = 6;

const byId = (id) => document.getElementById(id);
const [dot, now, machine, instance, tally, summary] = ['link', 'now', 'machine', 'instance', 'tally', 'summary'].map(byId);

const rows = new Map();
let answers = 0;
let failures = 0;
let longest = 0;
let lastGood = performance.now();

const tintOf = (text) => [...text].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) >>> 0, 0) % TINTS;
const seconds = (time) => `${(time / 1000).toFixed(1)} s`;

function rowOf(who) {
  let row = rows.get(who.instance);
  if (!row) {
    const item = document.createElement('li');
    const [name, bar, count] = ['name', 'bar', 'count'].map((part) => {
      const element = document.createElement('span');
      element.className = part;
      item.append(element);
      return element;
    });
    item.className = `tint${tintOf(who.machine)}`;
    name.textContent = who.machine;
    name.title = who.instance;
    row = { item, bar, count, answers: 0 };
    rows.set(who.instance, row);
    tally.append(item);
  }
  return row;
}

function answered(who) {
  const time = performance.now();
  longest = Math.max(longest, time - lastGood);
  lastGood = time;
  answers += 1;
  rowOf(who).answers += 1;
  machine.textContent = who.machine;
  instance.textContent = who.instance;
  for (const row of rows.values()) {
    row.count.textContent = row.answers;
    row.bar.style.setProperty('--share', row.answers / answers);
  }
  dot.dataset.state = 'on';
  now.textContent = 'Answers';
}

function failed() {
  failures += 1;
  longest = Math.max(longest, performance.now() - lastGood);
  dot.dataset.state = 'waiting';
  now.textContent = 'No answer';
}

async function ask() {
  try {
    const response = await fetch('/who', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(response.statusText);
    answered(await response.json());
  } catch {
    failed();
  }
  summary.textContent = `${answers} answers, ${failures} failed; the longest time without one was ${seconds(longest)}.`;
  setTimeout(ask, EVERY);
}
ask();
