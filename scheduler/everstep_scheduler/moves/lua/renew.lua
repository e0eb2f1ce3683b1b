-- renew: an owner names the tokens it holds. Begins with a write that a full server allows.
-- H: owner lease_ms round tokens (at most 1,000 a call, 250 with wip) last(how many a round names, in its last call)
--    wip(1: RQ's registry too) salt
--    callers = inline callers of this process that drive a run: each gives its word for another lease
-- A lease of this owner that two rounds running did not name is an orphan: released, uncounted. Rounds count from the first
-- that saw it: a commit may have waited for long, and what it brings is not known to its owner before the answer is there.
-- Answers JSON: status = ok | rebuild; gone = tokens that hold nothing
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
    named[#named + 1], named[#named + 2] = token, H.round
    if H.wip then in_registry(token) end
  else
    gone[#gone + 1] = token
  end
end
if #longer > 0 then
  call('ZADD', S .. 'leases', 'XX', unpack(longer))
  call('HSET', held, unpack(named))
end
if H.last and call('HLEN', held) ~= H.last then
  local flat, released = call('HGETALL', held), 0
  for i = 1, #flat, 2 do
    local named = tonumber(flat[i + 1]) or 0
    if named == 0 then
      call('HSET', held, flat[i], H.round - 1)
    elseif named < H.round - 1 and released < MOVE_MAX then
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
out.status = 'ok'
if #gone > 0 then out.gone = gone end
return finish()
