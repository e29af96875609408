-- Version 1. Times are milliseconds since the Unix epoch, UTC; amounts are fen. What must never be wrong is said here, not
-- only in code: another program may open this file.
--
-- OR REPLACE removes the row that stands in its way without asking the triggers for UPDATE and DELETE, hence the triggers that
-- refuse to replace.

CREATE TABLE users (
    telegram_id INTEGER PRIMARY KEY CHECK (telegram_id > 0),
    credits INTEGER NOT NULL DEFAULT 0,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE TRIGGER users_are_not_replaced BEFORE INSERT ON users
WHEN EXISTS (SELECT 1 FROM users WHERE telegram_id = NEW.telegram_id)
BEGIN
    SELECT RAISE(ABORT, 'there is such a user already');
END;

CREATE TRIGGER users_are_kept BEFORE DELETE ON users
BEGIN
    SELECT RAISE(ABORT, 'users are never deleted');
END;

CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    order_no TEXT NOT NULL UNIQUE,
    merchant TEXT NOT NULL,
    telegram_id INTEGER NOT NULL REFERENCES users,
    package TEXT,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    amount_fen INTEGER NOT NULL CHECK (amount_fen > 0),
    credits INTEGER NOT NULL CHECK (credits > 0),
    param TEXT,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    -- `expired` is `pending` seen after expires_at_ms.
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'paid', 'review', 'refunded', 'cancelled')),
    trade_no TEXT,
    settled_by TEXT CHECK (settled_by IN ('notify', 'reconcile', 'manual')),
    paid_at_ms INTEGER,
    CHECK ((status IN ('paid', 'refunded')) = (paid_at_ms IS NOT NULL)),
    CHECK ((paid_at_ms IS NULL) = (settled_by IS NULL))
) STRICT;

-- A payment settles one order.
CREATE UNIQUE INDEX orders_by_trade ON orders (merchant, trade_no) WHERE trade_no IS NOT NULL;
CREATE INDEX orders_by_user ON orders (telegram_id);

CREATE TRIGGER orders_stay_settled BEFORE UPDATE OF status ON orders
WHEN (OLD.status = 'paid' AND NEW.status NOT IN ('paid', 'refunded')) OR (OLD.status = 'refunded' AND NEW.status <> 'refunded')
BEGIN
    SELECT RAISE(ABORT, 'a settled order can only be refunded');
END;

CREATE TRIGGER orders_keep_their_terms
BEFORE UPDATE OF id, order_no, merchant, telegram_id, package, name, type, amount_fen, credits, param, created_at_ms ON orders
BEGIN
    SELECT RAISE(ABORT, 'the terms of an order never change');
END;

CREATE TRIGGER orders_keep_their_settlement BEFORE UPDATE OF trade_no, settled_by, paid_at_ms ON orders
WHEN OLD.paid_at_ms IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'an order is settled once');
END;

CREATE TRIGGER orders_are_not_replaced BEFORE INSERT ON orders
WHEN EXISTS (SELECT 1 FROM orders WHERE id = NEW.id OR order_no = NEW.order_no)
    OR (NEW.trade_no IS NOT NULL AND EXISTS (SELECT 1 FROM orders WHERE merchant = NEW.merchant AND trade_no = NEW.trade_no))
BEGIN
    SELECT RAISE(ABORT, 'there is such an order already');
END;

CREATE TRIGGER orders_are_not_replaced_by_update BEFORE UPDATE OF trade_no ON orders
WHEN NEW.trade_no IS NOT NULL
    AND EXISTS (SELECT 1 FROM orders WHERE merchant = NEW.merchant AND trade_no = NEW.trade_no AND id <> NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'a payment settles one order');
END;

CREATE TRIGGER orders_are_kept BEFORE DELETE ON orders
BEGIN
    SELECT RAISE(ABORT, 'orders are never deleted');
END;

-- Every change of a balance, for good.
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY,
    telegram_id INTEGER NOT NULL REFERENCES users,
    kind TEXT NOT NULL CHECK (kind IN ('order', 'refund', 'grant', 'spend')),
    credits INTEGER NOT NULL CHECK (credits <> 0),
    order_id INTEGER REFERENCES orders,
    reason TEXT,
    created_at_ms INTEGER NOT NULL,
    CHECK ((kind IN ('order', 'refund')) = (order_id IS NOT NULL)),
    CHECK (kind <> 'order' OR credits > 0),
    CHECK (kind NOT IN ('refund', 'spend') OR credits < 0),
    CHECK (kind <> 'grant' OR reason IS NOT NULL)
) STRICT;

-- An order is credited once, and taken back once.
CREATE UNIQUE INDEX ledger_by_order ON ledger (order_id, kind) WHERE order_id IS NOT NULL;
CREATE INDEX ledger_by_user ON ledger (telegram_id);

CREATE TRIGGER ledger_moves_the_balance AFTER INSERT ON ledger
BEGIN
    UPDATE users SET credits = credits + NEW.credits WHERE telegram_id = NEW.telegram_id;
END;

CREATE TRIGGER ledger_is_append_only_update BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_is_append_only_delete BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_is_append_only_replace BEFORE INSERT ON ledger
WHEN EXISTS (SELECT 1 FROM ledger WHERE id = NEW.id)
    OR (NEW.order_id IS NOT NULL AND EXISTS (SELECT 1 FROM ledger WHERE order_id = NEW.order_id AND kind = NEW.kind))
BEGIN
    SELECT RAISE(ABORT, 'the ledger is append-only, and an order is credited once');
END;

-- What a source that proved itself has told us, as received, for good.
CREATE TABLE receipts (
    id INTEGER PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('notify', 'reconcile', 'manual')),
    outcome TEXT NOT NULL,
    merchant TEXT NOT NULL,
    order_no TEXT NOT NULL,
    trade_no TEXT NOT NULL,
    order_id INTEGER REFERENCES orders,
    client TEXT,
    method TEXT,
    payload BLOB NOT NULL
) STRICT;

CREATE INDEX receipts_by_order ON receipts (order_id) WHERE order_id IS NOT NULL;

CREATE TRIGGER receipts_are_kept_update BEFORE UPDATE ON receipts
BEGIN
    SELECT RAISE(ABORT, 'receipts are append-only');
END;

CREATE TRIGGER receipts_are_kept_delete BEFORE DELETE ON receipts
BEGIN
    SELECT RAISE(ABORT, 'receipts are append-only');
END;

CREATE TRIGGER receipts_are_not_replaced BEFORE INSERT ON receipts
WHEN EXISTS (SELECT 1 FROM receipts WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'receipts are append-only');
END;

-- What proved nothing: the newest ones only. AUTOINCREMENT, so that an id tells how many there have been.
CREATE TABLE rejections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    merchant TEXT,
    order_no TEXT,
    trade_no TEXT,
    client TEXT,
    method TEXT,
    payload BLOB NOT NULL,
    payload_bytes INTEGER NOT NULL
) STRICT;

-- Messages to buyers, written in the transaction that they tell of.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL REFERENCES orders,
    kind TEXT NOT NULL CHECK (kind IN ('settled', 'review', 'refunded')),
    created_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'sent', 'failed')),
    error TEXT,
    UNIQUE (order_id, kind)
) STRICT;

CREATE INDEX outbox_due ON outbox (due_at_ms) WHERE state = 'due';

-- Written to when it is in doubt whether anything can be.
CREATE TABLE heartbeat (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    beats INTEGER NOT NULL
) STRICT;
