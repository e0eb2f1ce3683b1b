-- branch: a checkpoint that builds on an earlier one is put behind the head of a thread at rest. The run that it belongs
-- to goes on from it, or rests there.
-- H: thread n digest (the head; n = 0 and digest = birth for a new thread) run sum graph queue jid salt
--    entries = the run's fact and the checkpoint, hashed by the caller; head = {n, digest, step}; base: step it builds on
--    on = {n, digest} of the checkpoint that it repeats, which must be there
--    next = rows, parts = {id -> tasks JSON}, stop = '' | interrupted
--    lk: what its limits are counted by, if they are per key; fk: its fairness key, if it has one
--    ask=1: write nothing, only say whether it would pass
--    own=1: an inline caller leases the tasks itself (owner lease_ms tokens)
-- Answers JSON: status = started | attached | conflict | busy | gone | dying | moved | rebuild | ready; entry; leases; run: how it rests
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T and call('EXISTS', S .. 'log:' .. H.thread) == 1 then return '{"status":"rebuild"}' end
if not T and call('EXISTS', S .. 'dying:' .. H.thread) == 1 then return '{"status":"dying"}' end
local known = call('HGET', S .. 'runs:' .. H.thread, H.run)
if known then
  local word, entry, sum = string.match(known, '^(%S+) (%S+) (%S*)')
  out.status, out.entry, out.run = sum == H.sum and 'attached' or 'conflict', entry, word
  if H.own and T.status == 'running' and resent() then return finish() end
  return cjson.encode(out)
end
if T and (T.status == 'running' or (T.cleaning or '') ~= '') then return '{"status":"busy"}' end
if not grounded(H.thread, T, H.on) then return '{"status":"gone"}' end
if (T and T.n or 0) ~= H.n or T and T.digest ~= H.digest then return '{"status":"moved"}' end
if H.ask then return '{"status":"ready"}' end

for _, r in ipairs(H.next) do -- what can't be queued is not written
  if #r == 4 then call('LLEN', R .. 'queue:' .. r[3]) end
end
local entry = append(H.thread)[1]
if not T then
  T = { birth = H.digest, n = 0, digest = H.digest, step = -2, jid = H.jid }
  threads[H.thread] = T
end
call('HSET', S .. 'runs:' .. H.thread, H.run, 'running ' .. entry .. ' ' .. H.sum)
out.status, out.entry = 'started', entry
T.parent = ''
begin(H.thread, T, H.run, entry, '', H.graph, H.queue, H.lk, H.fk)
gives_word(T, H.caller)
T.n, T.digest, T.step = H.head[1], H.head[2], H.head[3]
T.base, T.updated = H.base, NOW
open_step(H.thread, T, H.next, H.stop == '' and not H.own)
if T.width == 0 then
  rest(H.thread, T, 'done')
elseif H.stop ~= '' then
  rest(H.thread, T, H.stop)
elseif H.own then
  make_own(H.thread, T)
end
if T.status ~= 'running' then out.run = T.status end
return finish()
