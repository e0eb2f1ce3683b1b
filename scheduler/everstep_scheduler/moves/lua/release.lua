-- release: leases are given back. Begins with a write that a full server allows.
-- H: owner tokens salt to = job (uncounted) | parked (uncounted, reason; for whoever serves `node`, its own by default) | lost (the pool saw the process die)
--    caller: this inline caller drives its run no more; ended=1: for it has ended
--    without tokens: whatever the owner still holds, at most 250 a call
-- Answers JSON: status = ok | rebuild; released; more = 1 if something is left
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
if H.caller and H.ended then
  call('ZREM', S .. 'callers', H.caller)
elseif H.caller then
  call('ZADD', S .. 'callers', -NOW, H.caller)
end
local tokens, more = H.tokens, nil
if not tokens then
  tokens = call('HRANDFIELD', S .. 'held:' .. H.owner, MOVE_MAX)
end
local released = {}

-- False: its log is obstructed. Nobody holds it any more; it runs out, and is given back when the log is mended.
local function give_back(thread, T, task, rec)
  if H.to == 'lost' then return lost(thread, T, task, rec, true) end
  if H.to == 'parked' and type(show('LLEN', S .. 'parked:' .. T.graph .. ':' .. (H.node or rec.n))) == 'table' then return false end
  if H.to == 'parked' and not try_fact(thread, T, T.run, 'task_parked', 'task', task, 'node', rec.n, 'by', H.owner, 'error', H.reason) then
    return false
  end
  unlease(rec)
  rec.a = rec.a - 1
  if H.to ~= 'parked' then
    push(thread, T, task, rec, true)
    return true
  end
  rec.p, rec.t = 'parked', nil
  rec.u = H.node
  show_failed(thread, T, task, rec, H.reason)
  keep(thread, task, rec)
  call('RPUSH', S .. 'parked:' .. T.graph .. ':' .. (H.node or rec.n), place_of(thread, T, task))
  call('HINCRBY', S .. 'parked', T.graph .. ':' .. (H.node or rec.n), 1)
  show('HINCRBY', S .. 'stats', 'parked', 1)
  return true
end

for _, token in ipairs(tokens) do
  local thread, T, task, rec = by_token(token)
  if thread and rec.p == 'lease' and T.status == 'running' then
    local whole, taken = pcall(give_back, thread, T, task, rec)
    if whole and taken then released[#released + 1] = task .. ' ' .. thread
    else call('HDEL', S .. 'held:' .. H.owner, token) end -- its lease stays, and runs out
  else
    call('HDEL', S .. 'held:' .. H.owner, token)
    call('HDEL', S .. 'lease', token)
    call('ZREM', S .. 'leases', token)
  end
end
out.status = 'ok'
if #released > 0 then out.released = released end
if not H.tokens and call('EXISTS', S .. 'held:' .. H.owner) == 1 then out.more = 1 end
return finish()
