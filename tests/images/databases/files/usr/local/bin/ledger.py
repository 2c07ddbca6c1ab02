"""What `flotilla-ledger` does with SQLite, with other ways to keep data: a row, and then a line in a file on another volume, all the
time; over HTTP it answers how far it is, and what it found when it started."""

import http.server
import json
import os
import socket
import threading
import time

JOURNAL = "/journal/journal"
PAUSE = 0.01


def millis():
    return int(time.time() * 1000)


def last_line():
    """The number on the last whole line."""
    if not os.path.exists(JOURNAL):
        return 0
    with open(JOURNAL) as journal:
        whole = journal.read().rpartition("\n")[0]
    return int(whole.rsplit("\n", 1)[-1]) if whole else 0


def serve(found, integrity, write):
    """`write(number)` keeps a row, and returns when it is kept."""
    found_in_journal = last_line()
    print(f"found {found} rows and {found_in_journal} lines; integrity: {integrity}", flush=True)
    ledger = {
        "host": socket.gethostname(),
        "started": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "found": found,
        "found_in_journal": found_in_journal,
        "integrity": integrity,
        "acknowledged": found,
        "at": millis(),
    }

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = json.dumps(ledger).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("", 8080), Answer)
    threading.Thread(target=web.serve_forever, daemon=True).start()

    with open(JOURNAL, "a") as journal:
        # Lines of rows that are lost stand for nothing; those that are missing are made up for.
        for line in range(found_in_journal + 1, found + 1):
            journal.write(f"{line}\n")
        journal.flush()
        number = found
        while True:
            number += 1
            write(number)
            journal.write(f"{number}\n")
            journal.flush()
            ledger.update(acknowledged=number, at=millis())
            time.sleep(PAUSE)
