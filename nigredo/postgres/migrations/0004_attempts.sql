-- What the receiver said, and whether somebody asked for the attempt. Both have a value for rows that are there already,
-- and for the running previous version, which does not write them.
ALTER TABLE nigredo.webhook_logs
    ADD COLUMN is_replay      boolean NOT NULL DEFAULT false,
    ADD COLUMN answer_excerpt text;
COMMENT ON COLUMN nigredo.webhook_logs.is_replay IS 'asked for by a replay rather than due by itself';
COMMENT ON COLUMN nigredo.webhook_logs.answer_excerpt IS
    'the first 512 bytes of the answer, with what the lead itself says masked';
