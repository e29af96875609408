-- Version 4: the gateway's answers are state, and a payment can become that of an order which a person has settled.

-- The money of an order that a person settled came by another way than the gateway: no payment is adopted.
ALTER TABLE orders ADD COLUMN paid_outside INTEGER NOT NULL DEFAULT 0 CHECK (paid_outside = 0 OR paid_outside = 1);
ALTER TABLE orders ADD COLUMN review_reason TEXT CHECK (
    review_reason = 'amount' OR review_reason = 'late' OR review_reason = 'cancelled' OR review_reason = 'param'
    OR review_reason = 'no_trade_no' OR review_reason = 'refunded' OR review_reason = 'too_old');
-- Why a callback alone does not settle the order.
ALTER TABLE orders ADD COLUMN hold TEXT CHECK (
    hold = 'frozen' OR hold = 'pre_authorised' OR hold = 'refunded' OR hold = 'restored');

-- The amount that a notification or an answer tells; NULL where it cannot be read.
ALTER TABLE receipts ADD COLUMN amount_fen INTEGER;
-- An alert that does not follow from the outcome.
ALTER TABLE receipts ADD COLUMN alert TEXT CHECK (alert = 'adopted' OR alert = 'refunded' OR alert = 'status_unclear');

DROP TRIGGER orders_keep_their_settlement;
CREATE TRIGGER orders_keep_their_settlement BEFORE UPDATE OF trade_no, settled_by, paid_at_ms, paid_outside ON orders
WHEN OLD.paid_at_ms IS NOT NULL
    AND NOT (OLD.status = 'paid' AND OLD.settled_by = 'manual' AND OLD.trade_no IS NULL AND OLD.paid_outside = 0
             AND NEW.trade_no IS NOT NULL AND NEW.settled_by IS OLD.settled_by AND NEW.paid_at_ms IS OLD.paid_at_ms
             AND NEW.paid_outside IS OLD.paid_outside)
BEGIN
    SELECT RAISE(ABORT, 'an order is settled once');
END;

-- Answers of before this version are state as well. The money that went back once is the strongest of them.
UPDATE orders SET hold = (
    SELECT answer FROM answers
    WHERE order_id = orders.id AND answer IN ('refunded', 'frozen', 'pre_authorised')
    ORDER BY answer = 'refunded' DESC, id DESC LIMIT 1)
WHERE paid_at_ms IS NULL
    AND id IN (SELECT order_id FROM answers WHERE answer IN ('refunded', 'frozen', 'pre_authorised'));
