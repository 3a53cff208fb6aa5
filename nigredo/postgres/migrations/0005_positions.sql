-- What proves that the log is still the one that `next_offset` was stored for: a record handled before it. Nullable, and
-- without a default, for rows that are there already and for the running previous version, which does not write them:
-- then the proof is of an earlier record, and holds all the same.
ALTER TABLE nigredo.stream_offsets
    ADD COLUMN last_offset        bigint,
    ADD COLUMN last_timestamp_ms  bigint,
    ADD COLUMN last_key_crc32     bigint;
COMMENT ON COLUMN nigredo.stream_offsets.last_offset IS
    'a record handled before next_offset, which a start finds again in the log, or reads nothing';
