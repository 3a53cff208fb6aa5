-- Statements of the persister. `store.py` finds them by their `:name` headings; `%(rows)s` is a JSON array, so that a
-- batch is one statement a table, whatever its size.

-- :name read_position
SELECT next_offset, last_offset, last_timestamp_ms, last_key_crc32 FROM nigredo.stream_offsets
WHERE topic_id = %(topic_id)s AND partition = %(partition)s;

-- :name begin_position
-- The only statement that inserts a position. Returns no row when the stored offset has changed since it was read.
INSERT INTO nigredo.stream_offsets AS present
    (topic_id, partition, topic, next_offset, last_offset, last_timestamp_ms, last_key_crc32)
VALUES (%(topic_id)s, %(partition)s, %(topic)s, %(next_offset)s, %(last_offset)s, %(last_ms)s, %(last_key)s)
ON CONFLICT (topic_id, partition) DO UPDATE SET
    next_offset = excluded.next_offset, last_offset = excluded.last_offset,
    last_timestamp_ms = excluded.last_timestamp_ms, last_key_crc32 = excluded.last_key_crc32
WHERE present.next_offset = %(stood_at)s
RETURNING next_offset;

-- :name put_back
UPDATE nigredo.stream_offsets SET
    next_offset = %(next_offset)s, last_offset = %(last_offset)s, last_timestamp_ms = %(last_ms)s,
    last_key_crc32 = %(last_key)s
WHERE topic_id = %(topic_id)s AND partition = %(partition)s;

-- :name move_offset
-- The fence: returns no row when another writer has moved the partition on, or the database was restored to an earlier
-- state or emptied, so that the partition must start again.
UPDATE nigredo.stream_offsets SET
    next_offset = %(next_offset)s, last_offset = %(last_offset)s, last_timestamp_ms = %(last_ms)s,
    last_key_crc32 = %(last_key)s
WHERE topic_id = %(topic_id)s AND partition = %(partition)s AND next_offset = %(stood_at)s
RETURNING next_offset;

-- :name insert_leads
-- A stored lead stays as it is, because its status belongs to the people who work on it.
INSERT INTO nigredo.leads
    (id, name, email, message, extra, source, form_id, ip_address, user_agent, created_at, lead_partition, lead_offset)
SELECT id, name, email, message, extra, source, form_id, ip_address, user_agent, created_at, lead_partition, lead_offset
FROM jsonb_to_recordset(%(rows)s) AS row (
    id uuid, name text, email text, message text, extra jsonb, source text, form_id text, ip_address text,
    user_agent text, created_at timestamptz, lead_partition integer, lead_offset bigint
)
ON CONFLICT (id) DO NOTHING;

-- :name delete_leads
DELETE FROM nigredo.leads WHERE id = ANY(%(ids)s);

-- :name delete_form_submissions
DELETE FROM nigredo.form_submissions WHERE id = ANY(%(ids)s);

-- :name upsert_form_submissions
-- A lead replaces a rejection of the same id, whichever is read first.
INSERT INTO nigredo.form_submissions AS present
    (id, lead_id, ip_address, user_agent, source, form_id, verdict, reason, submitted_at,
     submission_partition, submission_offset)
SELECT id, id, ip_address, user_agent, source, form_id, verdict, reason, submitted_at,
       submission_partition, submission_offset
FROM jsonb_to_recordset(%(rows)s) AS row (
    id uuid, ip_address text, user_agent text, source text, form_id text, verdict text, reason text,
    submitted_at timestamptz, submission_partition integer, submission_offset bigint
)
ON CONFLICT (id) DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason
WHERE excluded.verdict IN ('accepted', 'released') AND present.verdict NOT IN ('accepted', 'released');

-- :name upsert_rate_limits
INSERT INTO nigredo.rate_limits AS present
    (ip_address, submission_count, window_start, updated_at, input_partition, input_offset)
SELECT ip_address, submission_count, window_start, updated_at, input_partition, input_offset
FROM jsonb_to_recordset(%(rows)s) AS row (
    ip_address text, submission_count integer, window_start timestamptz, updated_at timestamptz,
    input_partition integer, input_offset bigint
)
ON CONFLICT (ip_address) DO UPDATE SET
    submission_count = excluded.submission_count, window_start = excluded.window_start,
    updated_at = excluded.updated_at, input_partition = excluded.input_partition, input_offset = excluded.input_offset
-- A later window with a lower offset comes from a recreated submissions topic. A window's clock never runs backwards.
WHERE present.input_partition <> excluded.input_partition OR present.input_offset < excluded.input_offset
    OR present.updated_at < excluded.updated_at;

-- :name bookkeeping
-- Rows that this transaction deletes reset no limit, because it follows the stream or removes expired rows. Without
-- this setting a deleted row of `rate_limits` is an operator's request to reset the limit (migration 0003).
SELECT set_config('nigredo.bookkeeping', 'on', true);

-- :name delete_rate_limits
-- An empty window that is written late never deletes a newer window's row.
DELETE FROM nigredo.rate_limits AS present
USING jsonb_to_recordset(%(rows)s) AS row (ip_address text, input_offset bigint)
WHERE present.ip_address = row.ip_address AND present.input_offset <= row.input_offset;

-- :name insert_webhook_logs
INSERT INTO nigredo.webhook_logs
    (id, lead_id, endpoint, webhook_url, attempt, status_code, success, error_message, sent_at, duration_ms,
     is_replay, answer_excerpt)
SELECT id, lead_id, endpoint, webhook_url, attempt, status_code, success, error_message, sent_at, duration_ms,
       is_replay, answer_excerpt
FROM jsonb_to_recordset(%(rows)s) AS row (
    id uuid, lead_id uuid, endpoint text, webhook_url text, attempt integer, status_code integer, success boolean,
    error_message text, sent_at timestamptz, duration_ms integer, is_replay boolean, answer_excerpt text
)
ON CONFLICT (id) DO NOTHING;

-- :name take_resets
-- Rows stay locked until the transaction ends and are skipped by others, so that persisters share the work unblocked.
SELECT id, ip_address, requested_by, requested_at FROM nigredo.rate_limit_resets
ORDER BY id LIMIT %(count)s FOR UPDATE SKIP LOCKED;

-- :name delete_resets
DELETE FROM nigredo.rate_limit_resets WHERE id = ANY(%(ids)s);

-- Row retention deletes expired rows, a limited number at a time, and skips rows that another transaction is writing.

-- :name clean_rate_limits
DELETE FROM nigredo.rate_limits WHERE ip_address IN (
    SELECT ip_address FROM nigredo.rate_limits WHERE window_start < %(before)s LIMIT %(count)s FOR UPDATE SKIP LOCKED
);

-- :name clean_form_submissions
DELETE FROM nigredo.form_submissions WHERE id IN (
    SELECT id FROM nigredo.form_submissions
    WHERE submitted_at < %(before)s AND verdict NOT IN ('accepted', 'released')
    LIMIT %(count)s FOR UPDATE SKIP LOCKED
);

-- :name clean_webhook_logs
DELETE FROM nigredo.webhook_logs WHERE id IN (
    SELECT id FROM nigredo.webhook_logs WHERE sent_at < %(before)s LIMIT %(count)s FOR UPDATE SKIP LOCKED
);
