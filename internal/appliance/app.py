# The appliance's API: answers /api/packages from a database in memory, and
# /api/health. It makes the file named by its argument once it listens.
import json
import socket
import sqlite3
import sys

db = sqlite3.connect(":memory:")
db.execute("create table packages (name text primary key, version text)")
with open("/srv/packages") as f:
    db.executemany("insert into packages values (?, ?)", (line.strip().split("=", 1) for line in f))


def answer(path):
    if path == "/api/health":
        return {"ok": True, "packages": db.execute("select count(*) from packages").fetchone()[0]}
    if path == "/api/packages":
        return dict(db.execute("select name, version from packages order by name"))
    return None


listener = socket.create_server(("127.0.0.1", 8080), backlog=64)
open(sys.argv[1], "w").close()
while True:
    conn, _ = listener.accept()
    with conn:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 16384:
            piece = conn.recv(4096)
            if not piece:
                break
            head += piece
        words = head.split(b" ", 2)
        reply = answer(words[1].decode("latin-1")) if len(words) == 3 and words[0] == b"GET" else None
        body = json.dumps(reply).encode()
        status = b"404 Not Found" if reply is None else b"200 OK"
        conn.sendall(b"HTTP/1.0 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
