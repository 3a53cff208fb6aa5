-- Leads are read newest first, a page at a time. Made beside the running version: the table is small at the first start.
CREATE INDEX leads_newest_first_idx ON nigredo.leads (created_at DESC, id DESC);
