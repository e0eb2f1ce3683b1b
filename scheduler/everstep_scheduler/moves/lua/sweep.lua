-- sweep: what nobody else would do. Any worker, about every second, bounded. Begins with a write a full server allows.
-- H: lease_ms server(its run id) salt
-- Expired leases -> lost; due wakes -> jobs; steps given up, runs cancelled -> their jobs removed. After a gap in which nobody could
-- renew, or on a new server, nothing expires for lease + 2 s.
-- Answers JSON: status = ok | rebuild; lost; woken; held = ms until leases may expire again
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
local key = S .. 'sweep'
local seen = call('HMGET', key, 'at', 'server', 'hold')
local last, hold = tonumber(seen[1]), tonumber(seen[3]) or 0
if not last or NOW - last > math.max(H.lease_ms / 2, 500) or seen[2] ~= H.server then hold = NOW + H.lease_ms + 2000 end
call('HSET', key, 'at', NOW, 'server', H.server, 'hold', hold)
out.status, out.lost, out.woken = 'ok', 0, wake_due(WAKES_MAX)
if hold > NOW then
  out.held = hold - NOW
else
  for _, token in ipairs(call('ZRANGEBYSCORE', S .. 'leases', '-inf', NOW, 'LIMIT', 0, 100)) do
    local thread, T, task, rec = by_token(token)
    if thread and rec.p == 'lease' and T.status == 'running' then
      if lost(thread, T, task, rec, false) then out.lost = out.lost + 1
      else call('ZADD', S .. 'leases', NOW + rec.L, token) end -- its log is obstructed: looked at again, the others go on
    else
      call('ZREM', S .. 'leases', token)
      call('HDEL', S .. 'lease', token)
    end
  end
end
local thread = call('LINDEX', S .. 'cleanings', 0) -- a cancelled run whose canceller may be gone
if thread then
  local T = load(thread)
  if T and (T.cleaning or '') ~= '' then withdraw(thread, T, T.cleaning) end
  if not T or (T.cleaning or '') == '' then call('LPOP', S .. 'cleanings') end
else
  clean_discards(MOVE_MAX - out.woken - out.lost)
end
return finish()
