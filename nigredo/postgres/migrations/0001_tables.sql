-- The four public tables, and how far the topics were read into them.
-- Every statement of the product names the schema, so that an operator finds it in pg_stat_statements.

CREATE TABLE nigredo.leads (
    id              uuid        PRIMARY KEY,
    name            text        NOT NULL,
    email           text        NOT NULL,
    message         text        NOT NULL,
    extra           jsonb       NOT NULL DEFAULT '{}',
    -- Belongs to whoever works on the lead: never written again from the topics.
    status          text        NOT NULL DEFAULT 'new',
    source          text,
    form_id         text,
    ip_address      text        NOT NULL,
    user_agent      text,
    created_at      timestamptz NOT NULL,
    stored_at       timestamptz NOT NULL DEFAULT now(),
    lead_partition  integer     NOT NULL,
    lead_offset     bigint      NOT NULL
);
COMMENT ON COLUMN nigredo.leads.created_at IS 'when ingest took the form';
COMMENT ON COLUMN nigredo.leads.lead_offset IS 'where the record stands in the topic nigredo.leads';

CREATE TABLE nigredo.form_submissions (
    id                    uuid        PRIMARY KEY,
    lead_id               uuid        NOT NULL,
    ip_address            text        NOT NULL,
    user_agent            text,
    source                text,
    form_id               text,
    verdict               text        NOT NULL
        CHECK (verdict IN ('accepted', 'released', 'rate_limited', 'spam', 'duplicate')),
    reason                text,
    submitted_at          timestamptz NOT NULL,
    submission_partition  integer     NOT NULL,
    submission_offset     bigint      NOT NULL
);
CREATE INDEX form_submissions_submitted_at_idx ON nigredo.form_submissions (submitted_at);
COMMENT ON COLUMN nigredo.form_submissions.submitted_at IS 'the broker''s append time: the clock of the limit';

CREATE TABLE nigredo.webhook_logs (
    id             uuid        PRIMARY KEY,
    lead_id        uuid        NOT NULL,
    endpoint       text        NOT NULL,
    webhook_url    text        NOT NULL,
    attempt        integer     NOT NULL,
    status_code    integer,
    success        boolean     NOT NULL,
    error_message  text,
    sent_at        timestamptz NOT NULL,
    duration_ms    integer     NOT NULL
);
CREATE INDEX webhook_logs_lead_id_idx ON nigredo.webhook_logs (lead_id);
CREATE INDEX webhook_logs_sent_at_idx ON nigredo.webhook_logs (sent_at);

CREATE TABLE nigredo.rate_limits (
    ip_address        text        PRIMARY KEY,
    submission_count  integer     NOT NULL,
    window_start      timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    input_partition   integer     NOT NULL,
    input_offset      bigint      NOT NULL
);
COMMENT ON TABLE nigredo.rate_limits IS 'one row a client network: an IPv4 address or an IPv6 /64';
COMMENT ON COLUMN nigredo.rate_limits.submission_count IS 'accepted and refused ones of the present window';
COMMENT ON COLUMN nigredo.rate_limits.input_offset IS 'the submission up to which the row is true';
COMMENT ON COLUMN nigredo.rate_limits.window_start IS 'the oldest counted acceptance';

-- Written in the transaction of the rows: what is stored and how far was read can never disagree.
CREATE TABLE nigredo.stream_offsets (
    topic_id     text    NOT NULL,
    partition    integer NOT NULL,
    topic        text    NOT NULL,
    next_offset  bigint  NOT NULL,
    PRIMARY KEY (topic_id, partition)
);
COMMENT ON COLUMN nigredo.stream_offsets.topic_id IS 'Kafka''s own id: a topic made anew under an old name is another topic';
