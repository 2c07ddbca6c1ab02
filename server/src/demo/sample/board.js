// Keeps the page as it is on the board: changes come as server-sent events, who is here over a WebSocket.
// Without it the page works by its forms alone.
'use strict';

const contents = document.getElementById('contents');
const here = document.getElementById('here');
const dot = document.getElementById('link');

const ago = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });
const UNITS = [['day', 86400], ['hour', 3600], ['minute', 60]];

function tellTimes() {
  for (const time of document.querySelectorAll('time')) {
    const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
    const [unit, length] = UNITS.find(([, length]) => -seconds >= length) ?? [];
    time.title = new Date(time.dateTime).toLocaleString();
    time.textContent = unit ? ago.format(Math.round(seconds / length), unit) : 'just now';
  }
}

let wanted = contents.dataset.version;
let asking = false;

// One request at a time; what changes meanwhile is asked for once more.
async function refresh() {
  if (asking) return;
  asking = true;
  while (contents.dataset.version !== wanted) {
    const version = wanted;
    try {
      const response = await fetch('/list', { cache: 'no-store' });
      if (!response.ok) break;
      contents.innerHTML = await response.text();
      contents.dataset.version = version;
      tellTimes();
    } catch {
      // The event stream comes back by itself, and brings the version with it.
      break;
    }
  }
  asking = false;
}

function show(state, sentence) {
  dot.dataset.state = state;
  if (here.textContent !== sentence) here.textContent = sentence;
}

const events = new EventSource('/events');
events.addEventListener('board', ({ data }) => {
  wanted = data;
  refresh();
});

let pause = 500;
function attend() {
  const socket = new WebSocket(new URL('/presence', location.href.replace(/^http/, 'ws')));
  socket.onmessage = ({ data }) => {
    const count = JSON.parse(data).here;
    pause = 500;
    here.dataset.count = count;
    show('on', count === 1 ? 'Only you are here' : `${count} are here`);
  };
  socket.onclose = () => {
    show('waiting', 'Connecting again…');
    setTimeout(attend, pause);
    pause = Math.min(pause * 2, 15000);
  };
}
attend();

document.getElementById('text').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
});

tellTimes();
setInterval(tellTimes, 30000);
