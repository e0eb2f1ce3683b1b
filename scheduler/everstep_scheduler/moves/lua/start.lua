-- start: a run begins on a thread, or waits behind the one under way. What it does is in starting.lua.
-- H: thread run sum kind(input|update|continue|resume) graph queue task node jid birth mode(enqueue|reject) salt
--    base: the step that the run builds on, where that is not the last checkpoint's
--    own=1: an inline caller leases the first task itself (owner lease_ms tokens round)
--    count: of the arguments for the fact, which follow ARGV[1]; behind them one value per answer
--    answers = { {task, question}, ... } (continue, resume; at most 250), at = {n, digest} whose questions they answer;
--    question '': it comes before it is asked, for the one task that may ask next (task '': the first one added)
--    command = {after, updates=1, tasks, parts} (resume): it goes on also from a thread that is done
--      after: the thread's last run; updates: the fact's input is for the state of the checkpoint;
--      tasks = { {node, queue, seconds}, ... } to add to the open step, parts = {number of Sends, ...}, whose `tasks`,
--      `sends` and `sum` follow the answers
-- Answers JSON: status = started | queued | attached | conflict | busy | rebuild | nothing | asked | stale; entry; leases
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T and call('EXISTS', S .. 'log:' .. H.thread) == 1 then return '{"status":"rebuild"}' end
local known = call('HGET', S .. 'runs:' .. H.thread, H.run)
if known then
  local word, entry, sum = string.match(known, '^(%S+) (%S+) (%S*)')
  out.status, out.entry, out.run = sum == H.sum and 'attached' or 'conflict', entry, word
  if H.own and T.status == 'running' and resent() then return finish() end
  return cjson.encode(out)
end
local why = refusal(H, T)
if why then return cjson.encode({ status = why }) end

call('LLEN', R .. 'queue:' .. H.queue) -- what can't be queued is not written
for _, q in ipairs(queues_of(H, 2)) do call('LLEN', R .. 'queue:' .. q) end
local entry, begun = begin_run(H, T, 2, function(task, rec)
  if H.own then lease(H.thread, threads[H.thread], task, rec, table.remove(H.tokens, 1)) else push(H.thread, threads[H.thread], task, rec) end
end)
out.entry, out.status = entry, begun and 'started' or 'queued'
if begun and goes_on(H) and threads[H.thread].status == 'running' then make_on(H.thread, threads[H.thread]) end
return finish()
