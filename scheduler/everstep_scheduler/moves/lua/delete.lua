-- delete: forget a thread at rest: its log, its indexes, its jobs.
-- H: thread salt
--    aside=1: its log is put aside as `dying`, for whoever sees to what it called; nothing begins on the thread meanwhile
--    of: only while this thread's log is put aside; kept: the key of a log without indexes, which a node kept
-- Answers JSON: status = deleted (aside also: it was before) | busy | unknown | rebuild
if not alive() then return '{"status":"rebuild"}' end
local dying = S .. 'dying:' .. H.thread
if H.of and call('EXISTS', S .. 'dying:' .. H.of) == 0 then return '{"status":"unknown"}' end
if H.kept then
  if call('EXISTS', S .. H.kept) == 1 then call('RENAME', S .. H.kept, dying) end
  return '{"status":"deleted"}'
end
local T = load(H.thread)
if not T then return H.aside and call('EXISTS', dying) == 1 and '{"status":"deleted"}' or '{"status":"unknown"}' end
if T.status == 'running' then return '{"status":"busy"}' end
discard_step(H.thread, T)
call('ZREM', S .. 'threads:' .. T.status, H.thread)
if H.aside and call('EXISTS', S .. 'log:' .. H.thread) == 1 then call('RENAME', S .. 'log:' .. H.thread, dying) end
call('UNLINK', S .. 'log:' .. H.thread, S .. 'thread:' .. H.thread, S .. 'queued:' .. H.thread, S .. 'runs:' .. H.thread)
threads[H.thread], out.status = nil, 'deleted'
return finish()
