"""What users would have otherwise: the same work in Flask on sqlite3, written as one would write it, and durable.

One transaction a callback, with synchronous = FULL and write-ahead logging: the order, the ledger, the balance, the message and the
receipt. `scripts/bench` runs it in Flask's own server and in gunicorn; DATABASE and KEY come from the environment, PORT for the former.
"""

import hashlib
import os
import sqlite3
import threading
import time

from flask import Flask, request

app = Flask(__name__)
local = threading.local()
KEY = os.environ["KEY"]

SCHEMA = """
CREATE TABLE users (telegram_id INTEGER PRIMARY KEY, credits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE orders (id INTEGER PRIMARY KEY, order_no TEXT NOT NULL UNIQUE, telegram_id INTEGER NOT NULL, amount_fen INTEGER NOT NULL,
    credits INTEGER NOT NULL, status TEXT NOT NULL DEFAULT 'pending', trade_no TEXT UNIQUE, paid_at_ms INTEGER);
CREATE TABLE ledger (id INTEGER PRIMARY KEY, telegram_id INTEGER NOT NULL, credits INTEGER NOT NULL, order_id INTEGER UNIQUE,
    created_at_ms INTEGER NOT NULL);
CREATE TABLE outbox (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL UNIQUE, created_at_ms INTEGER NOT NULL);
CREATE TABLE receipts (id INTEGER PRIMARY KEY, received_at_ms INTEGER NOT NULL, outcome TEXT NOT NULL, order_no TEXT NOT NULL,
    trade_no TEXT NOT NULL, payload BLOB NOT NULL);
"""


def connection():
    if not hasattr(local, "db"):
        local.db = sqlite3.connect(os.environ["DATABASE"], isolation_level=None, timeout=30)
        local.db.execute("PRAGMA journal_mode = WAL")
        local.db.execute("PRAGMA synchronous = FULL")
    return local.db


def is_signed(fields):
    signed = "&".join(f"{key}={fields[key]}" for key in sorted(fields) if fields[key] and key not in ("sign", "sign_type"))
    return hashlib.md5((signed + KEY).encode()).hexdigest() == fields.get("sign")


@app.post("/payment/notify")
def notify():
    payload = request.get_data()
    fields = request.form.to_dict()
    if not is_signed(fields):
        return "fail"
    db, now = connection(), int(time.time() * 1000)
    order_no, trade_no = fields["out_trade_no"], fields["trade_no"]
    db.execute("BEGIN IMMEDIATE")
    try:
        order = db.execute(
            "SELECT id, telegram_id, amount_fen, credits, status FROM orders WHERE order_no = ?", (order_no,)
        ).fetchone()
        if order is None or order[2] != round(float(fields["money"]) * 100):
            outcome = "fail"
        elif order[4] == "paid":
            outcome = "duplicate"
        else:
            outcome = "settled"
            order_id, user, _, credits, _ = order
            db.execute("UPDATE orders SET status = 'paid', trade_no = ?, paid_at_ms = ? WHERE id = ?", (trade_no, now, order_id))
            db.execute(
                "INSERT INTO ledger (telegram_id, credits, order_id, created_at_ms) VALUES (?, ?, ?, ?)", (user, credits, order_id, now)
            )
            db.execute("UPDATE users SET credits = credits + ? WHERE telegram_id = ?", (credits, user))
            db.execute("INSERT INTO outbox (order_id, created_at_ms) VALUES (?, ?)", (order_id, now))
        db.execute(
            "INSERT INTO receipts (received_at_ms, outcome, order_no, trade_no, payload) VALUES (?, ?, ?, ?, ?)",
            (now, outcome, order_no, trade_no, payload),
        )
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return "fail" if outcome == "fail" else "success"


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), threaded=True)
