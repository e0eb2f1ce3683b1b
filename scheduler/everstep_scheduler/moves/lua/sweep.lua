-- sweep: what nobody else would do. Any worker, about every second, bounded. Begins with a write a full server allows.
-- H: lease_ms server(its run id) salt
-- Expired leases -> lost; due wakes -> jobs; steps given up, runs cancelled -> their jobs removed; lines of limits are looked at.
-- After a gap in which nobody could renew, or on a new server, nothing expires for lease + 2 s.
-- Answers JSON: status = ok | rebuild; lost; woken; held = ms until leases may expire again; more = 1: there is more to do
local EXPIRED_MAX = 40
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
local key = S .. 'sweep'
local seen = show('HMGET', key, 'at', 'server', 'hold')
if seen.err then
  call('DEL', key)
  seen = {}
end
local last, hold = tonumber(seen[1]), tonumber(seen[3]) or 0
if not last or NOW - last > math.max(H.lease_ms / 2, 500) or seen[2] ~= H.server then hold = NOW + H.lease_ms + 2000 end
call('HSET', key, 'at', NOW, 'server', H.server, 'hold', hold)
out.status, out.lost, out.woken = 'ok', 0, wake_due(WAKES_MAX)
if out.woken == WAKES_MAX then out.more = 1 end
if hold > NOW then
  out.held = hold - NOW
else
  local expired = call('ZRANGEBYSCORE', S .. 'leases', '-inf', NOW, 'LIMIT', 0, EXPIRED_MAX)
  if #expired == EXPIRED_MAX then out.more = 1 end
  for _, token in ipairs(expired) do
    local thread, T, task, rec = by_token(token)
    if thread and rec.p == 'lease' and T.status == 'running' then
      local whole, taken = pcall(lost, thread, T, task, rec, false)
      if whole and taken then out.lost = out.lost + 1
      else call('ZADD', S .. 'leases', NOW + H.lease_ms, token) end -- its log takes no entry: looked at again, the others go on
    else
      call('ZREM', S .. 'leases', token)
      call('HDEL', S .. 'lease', token)
    end
  end
end

-- A cancelled run whose canceller may be gone, or a wide step whose failed tasks are still to be found. It leaves the list
-- first: who can't go on with it must not be in the way of the others.
local function go_on(thread)
  local T = load(thread)
  if T and (T.cleaning or '') ~= '' then
    withdraw(thread, T, T.cleaning)
    if T.cleaning ~= '' then call('LPUSH', S .. 'cleanings', thread) end
  elseif T and T.status == 'running' then
    make_jobs(thread, T)
  end
end

-- What a cancelled run's tasks called, if its canceller did not come to it.
local function follow(named)
  local T = type(named.thread) == 'string' and load(named.thread)
  if T and whole(T) and T.run == named.run and T.status == 'running' then revoke(named.thread, T, '') end
end

local called = show('LPOP', S .. 'revoked')
if type(called) == 'string' then
  pcall(follow, decoded(called) or {})
  if call('EXISTS', S .. 'revoked') == 1 then out.more = 1 end
end

gates.poke()
show('ZREMRANGEBYSCORE', S .. 'callers', DAY_MS - NOW, NOW - DAY_MS) -- gone, and nobody took their runs up
local thread = show('LPOP', S .. 'cleanings')
if type(thread) == 'string' then
  pcall(go_on, thread)
  if call('EXISTS', S .. 'cleanings') == 1 then out.more = 1 end
else
  pcall(clean_discards, MOVE_MAX - out.woken - out.lost)
end
return finish()
