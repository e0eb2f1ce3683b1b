-- renew: an owner names the tokens it holds. Begins with a write that a full server allows.
-- H: owner lease_ms before(ms; 0: judge nobody) tokens (at most 2,000 a call, 250 with wip) last(how many a renewal names, in its last call)
--    wip(1: RQ's registry too) salt
--    callers = inline callers of this process that drive a run: each gives its word for another lease
-- `before` is when the last renewal but one was carried out that the owner has an answer to. A lease of its that is older, and
-- was not named since, is an orphan: released, uncounted. It had two renewals' time to hear of it, from when it was made on: a
-- commit may have waited long before it brought it. A renewal that comes late, or twice, judges by what was known when it was
-- sent. Where the clock was set back, nobody is judged.
-- Answers JSON: status = ok | rebuild; at = now; gone = tokens that hold nothing
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
for _, caller in ipairs(H.callers or {}) do call('ZADD', S .. 'callers', NOW + H.lease_ms, caller) end
local gone, held = {}, S .. 'held:' .. H.owner
local function in_registry(token)
  local _, _, _, rec = by_token(token)
  if rec and rec.j then
    show('ZADD', R .. 'wip:' .. queue_of(rec), 'XX', math.floor((NOW + H.lease_ms) / 1000) + HOUR_S, rec.j .. ':' .. token)
  end
end

-- A few commands, however many they are.
local stand = #H.tokens > 0 and call('ZMSCORE', S .. 'leases', unpack(H.tokens)) or {}
local longer, named = {}, {}
for i, token in ipairs(H.tokens) do
  if stand[i] then
    longer[#longer + 1], longer[#longer + 2] = NOW + H.lease_ms, token
    named[#named + 1], named[#named + 2] = token, NOW
    if H.wip then in_registry(token) end
  else
    gone[#gone + 1] = token
  end
end
if #longer > 0 then
  call('ZADD', S .. 'leases', 'XX', unpack(longer))
  call('HSET', held, unpack(named))
end
if H.last and H.before <= NOW and call('HLEN', held) ~= H.last then
  local flat, released = call('HGETALL', held), 0
  for i = 1, #flat, 2 do
    if (tonumber(flat[i + 1]) or 0) < H.before and released < MOVE_MAX then
      local thread, T, task, rec = by_token(flat[i])
      if thread and T.status == 'running' then
        unlease(rec)
        rec.a = rec.a - 1
        push(thread, T, task, rec, true)
        released = released + 1
      else
        call('HDEL', held, flat[i])
      end
    end
  end
end
out.status, out.at = 'ok', NOW
if #gone > 0 then out.gone = gone end
return finish()
