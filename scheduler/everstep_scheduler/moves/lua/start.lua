-- start: a run begins on a thread, waits behind the one under way, or takes its place. What it does is in starting.lua.
-- H: thread run sum kind(input|update|continue|resume) graph queue task node jid birth salt
--    mode = enqueue | reject | interrupt | rollback: what happens if a run is under way; actor: who stops it
--    over(rollback) = the run that is to be stopped, '' if none is under way; at: the head then
--    base: the step that the run builds on, where that is not the last checkpoint's; on = {n, digest}, which must be there
--    own=1: an inline caller leases the first task itself (owner lease_ms tokens)
--    caller: its name; here = {name = 1}, seen = {name = ms}: what it knows of others; only=1: take up, begin nothing
--    lk: what limits of its nodes are counted by, if they are per key; fk: its fairness key, if it has one
--    count: of the arguments for the fact, which follow ARGV[1]; behind them one value per answer
--    answers = { {task, question, [signature]}, ... } (continue, resume; at most 250), at = {n, digest} whose questions they answer;
--    question '': it comes before it is asked, for the one task that may ask next (task '': the first one added)
--    command = {after, updates=1, tasks, parts} (resume): it goes on also from a thread that is done
--      after: the thread's last run; updates: the fact's input is for the state of the checkpoint;
--      tasks = { {node, queue, seconds}, ... } to add to the open step, parts = {number of Sends, ...}, whose `tasks`,
--      `sends` and `sum` follow the answers, sigs = their signatures, where there are any
-- Answers JSON: status = started | queued | attached | conflict | busy | rebuild | nothing | asked | stale | gone | dying; entry; leases;
--    resumed: under_way = the run that was taken up; equal: caller, till = whose run has this input, and its last word
--    moved (rollback): under_way = another run than `over`, or none
local QUEUED_LOOKED = 99
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T and call('EXISTS', S .. 'log:' .. H.thread) == 1 then return '{"status":"rebuild"}' end
if not T and call('EXISTS', S .. 'dying:' .. H.thread) == 1 then return '{"status":"dying"}' end
local known = call('HGET', S .. 'runs:' .. H.thread, H.run)
if known then
  local word, entry, sum = string.match(known, '^(%S+) (%S+) (%S*)')
  out.status, out.entry, out.run = sum == H.sum and 'attached' or 'conflict', entry, word
  if H.own and T.status == 'running' and resent() then return finish() end
  if H.caller and out.status == 'attached' and T.status == 'running' and T.run == H.run and (T.own or '') ~= ''
    and driven(T.own) == 'gone' then
    gives_word(T, H.caller)
    out.status, out.under_way = 'resumed', H.run
    return finish()
  end
  return cjson.encode(out)
end
local busy = T and T.status == 'running'

-- A run of this very input that another inline caller began: if that one is gone, it is taken up, true; 'equal' if only
-- time can tell. One that ended meanwhile is taken up all the same: its caller never saw it, else its word were gone.
local function taken_up(run, own)
  local known = own and own ~= '' and call('HGET', S .. 'runs:' .. H.thread, run)
  local _, entry, sum = string.match(known or '', '^(%S+) (%S+) (%S*)')
  if not sum or (sum ~= H.sum and H.kind ~= 'continue') then return end
  local how, till = driven(own)
  if own == H.caller then how = 'gone' end -- a resend
  if how == 'gone' and (busy or till) then
    call('ZADD', S .. 'callers', NOW + H.lease_ms, H.caller)
    out.status, out.under_way, out.entry = 'resumed', run, entry
  elseif how == 'unknown' and (busy or till) then
    out.status, out.caller, out.till = 'equal', own, till or 0
  end
  return out.status ~= nil
end

if H.caller and T and H.kind ~= 'update' and H.mode ~= 'interrupt' and H.mode ~= 'rollback' then
  if (busy or (H.seen[T.own or ''] and H.kind ~= 'continue')) and taken_up(T.run, T.own) then
    if out.status == 'resumed' then T.own = H.caller end
    return finish()
  end
  local waiting = busy and H.kind == 'input' and call('LRANGE', S .. 'queued:' .. H.thread, 0, QUEUED_LOOKED) or {}
  for i, element in ipairs(waiting) do
    local q = decoded(element) or {}
    if type(q.run) == 'string' and type(q.own) == 'string' and taken_up(q.run, q.own) then
      if out.status == 'resumed' then
        q.own = H.caller
        call('LSET', S .. 'queued:' .. H.thread, i - 1, cjson.encode(q))
      end
      return finish()
    end
  end
end
if H.only then return '{"status":"nothing"}' end
local why = refusal(H, T)
if why then return cjson.encode({ status = why }) end
if H.mode == 'rollback' and ((busy and T.run or '') ~= H.over or (H.at and T.n ~= H.at[1])) then
  return cjson.encode({ status = 'moved', under_way = busy and T.run or '' })
end
if not grounded(H.thread, T, H.on) then return '{"status":"gone"}' end

call('LLEN', R .. 'queue:' .. H.queue) -- what can't be queued is not written
for _, q in ipairs(queues_of(H, 2)) do call('LLEN', R .. 'queue:' .. q) end
if busy and (H.mode == 'interrupt' or H.mode == 'rollback') then stop_run(H.thread, T, H.actor) end
local entry, begun = begin_run(H, T, 2, function(task, rec)
  if H.own then lease(H.thread, threads[H.thread], task, rec, table.remove(H.tokens, 1)) else push(H.thread, threads[H.thread], task, rec) end
end)
if H.caller then call('ZADD', S .. 'callers', NOW + H.lease_ms, H.caller) end
out.entry, out.status = entry, begun and 'started' or 'queued'
if begun and goes_on(H) and threads[H.thread].status == 'running' then make_on(H.thread, threads[H.thread]) end
return finish()
