-- delete: forget a thread at rest: its log, its indexes, its jobs.
-- H: thread salt
-- Answers JSON: status = deleted | busy | unknown | rebuild
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T then return '{"status":"unknown"}' end
if T.status == 'running' then return '{"status":"busy"}' end
discard_step(H.thread, T)
write_counts()
call('ZREM', S .. 'threads:' .. T.status, H.thread)
call('UNLINK', S .. 'log:' .. H.thread, S .. 'thread:' .. H.thread, S .. 'queued:' .. H.thread, S .. 'runs:' .. H.thread)
return '{"status":"deleted"}'
