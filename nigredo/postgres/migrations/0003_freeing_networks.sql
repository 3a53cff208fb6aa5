-- `DELETE FROM nigredo.rate_limits` frees the networks: the truth is in the stream, so the persister passes it on.
-- The product's own deletes free nobody; each says so in its transaction: SET LOCAL nigredo.bookkeeping = 'on'.

CREATE TABLE nigredo.rate_limit_resets (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ip_address    text        NOT NULL,
    requested_by  text        NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE nigredo.rate_limit_resets IS
    'networks whose row was deleted, until the persister has asked the limiter to free them; empty most of the time';

-- With its owner's rights: whoever may delete a row need not have any on the outbox.
CREATE FUNCTION nigredo.ask_for_limit_resets() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('nigredo.bookkeeping', true) = 'on'
        -- The previous version's persister, which may run beside this schema for a while, does not say so.
        OR current_setting('application_name') LIKE 'nigredo-persister-%'
    THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO nigredo.rate_limit_resets (ip_address, requested_by)
        SELECT ip_address, session_user FROM nigredo.rate_limits;
    ELSE
        INSERT INTO nigredo.rate_limit_resets (ip_address, requested_by)
        SELECT ip_address, session_user FROM removed;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER rate_limits_deleted AFTER DELETE ON nigredo.rate_limits
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION nigredo.ask_for_limit_resets();
-- Before, since afterwards nothing would tell whose rows they were.
CREATE TRIGGER rate_limits_truncated BEFORE TRUNCATE ON nigredo.rate_limits
    FOR EACH STATEMENT EXECUTE FUNCTION nigredo.ask_for_limit_resets();

-- For the hourly clean-up, which would pass by every accepted submission that is older. Made beside the running
-- version: the table is small at the first start.
CREATE INDEX form_submissions_refused_idx ON nigredo.form_submissions (submitted_at)
    WHERE verdict NOT IN ('accepted', 'released');
