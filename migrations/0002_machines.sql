-- Which machine an event of the audit trail is about.
ALTER TABLE audit ADD COLUMN machine TEXT;
