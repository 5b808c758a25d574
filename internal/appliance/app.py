# The appliance's API: answers /api/packages from a database in memory, and
# /api/health.
import http.server
import json
import sqlite3

db = sqlite3.connect(":memory:", check_same_thread=False)
db.execute("create table packages (name text primary key, version text)")
with open("/srv/packages") as f:
    db.executemany("insert into packages values (?, ?)", (line.strip().split("=", 1) for line in f))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/api/health":
            reply = {"ok": True, "packages": db.execute("select count(*) from packages").fetchone()[0]}
        elif self.path == "/api/packages":
            reply = dict(db.execute("select name, version from packages order by name"))
        else:
            self.send_error(404)
            return
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
