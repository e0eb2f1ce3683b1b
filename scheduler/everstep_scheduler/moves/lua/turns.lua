-- Turns: runs with a fairness key (`fk` of the thread) share a queue key by key. Of each key one job stands in RQ's list, the
-- others wait in the line of a gate of their own, `|<key>|<queue>`; a limit's gate never begins so. Who stands in the list
-- holds the gate's one slot, and as it leaves the list, the next of its key goes to the back: round robin, by the list alone.
--   slots:<gate>  set: the job whose turn it is      line:<gate>, lines: as for limits
-- What goes to the front (given back, let in, a join) had its turn and waits for none. Without a key nothing here is called.
local IS_TURN = 124 -- the byte '|'
local turned = {}

function gates.is_turn(gate) return string.byte(gate or '') == IS_TURN end

-- A job is about to be pushed: true if another one of its key stands in the queue, and it waits in line instead.
function gates.turn(thread, T, task, rec, front)
  local gate = '|' .. T.fk .. '|' .. queue_of(rec)
  if front or (rec.g and rec.g ~= gate) then return false end
  if not rec.g and (call('SCARD', S .. 'slots:' .. gate) > 0 or call('EXISTS', S .. 'line:' .. gate) == 1) then
    rec.z, passed[gate] = nil, passed[gate] or true
    stand(thread, T, task, rec, gate)
    return true
  end
  rec.g = gate
  call('SADD', S .. 'slots:' .. gate, rec.j)
  return false
end

-- It leaves the list: its turn is over. The slot of a limit stays.
function gates.pass_on(rec)
  if not gates.is_turn(rec.g) then return end
  call('SREM', S .. 'slots:' .. rec.g, rec.j or '')
  passed[rec.g] = true
  rec.g = nil
end

-- Does the job whose turn it is stand in the place `job`? Keys that are not ours may have led elsewhere.
local function stands(gate)
  local id = call('SRANDMEMBER', S .. 'slots:' .. gate)
  local named = ours(id)
  local _, rec = nil, nil
  if named then _, rec = opened(named.thread, named.task) end
  return rec and rec.p == 'job' and rec.j == id and rec.g == gate
end

-- The first in line gets the turn, if nobody has it. `doubted`: whoever has it is looked at.
local function next_turn(gate, doubted)
  local key, slots = S .. 'line:' .. gate, S .. 'slots:' .. gate
  if call('SCARD', slots) > 0 then
    if not doubted or stands(gate) then return end
    call('DEL', slots)
  end
  for _ = 1, MOVE_MAX do
    local first = call('ZRANGE', key, 0, 0)[1]
    if not first then
      call('SREM', S .. 'lines', gate)
      return
    end
    local thread, T, task, rec = at_place(first)
    if not (thread and rec.p == 'line' and rec.g == gate and T.status == 'running') then
      call('ZREM', key, first)
    elseif type(show('LLEN', R .. 'queue:' .. queue_of(rec))) == 'table' then
      call('ZADD', S .. 'wakes', NOW + TRY_AGAIN_MS, 'line ' .. gate)
      return
    else
      gates.unline(thread, T, task, rec)
      rec.g, rec.z = gate, nil
      push(thread, T, task, rec)
      turned[#turned + 1] = rec
      return
    end
  end
  call('ZADD', S .. 'wakes', NOW, 'line ' .. gate)
end

-- Turns that are over go to the next. Called wherever limits are served, and after each job that refill takes. What a commit
-- brought was there before, and goes ahead of them.
function gates.pass()
  if next(passed) then push_coming() end
  while true do
    local gate, how = next(passed)
    if not gate then return end
    passed[gate] = nil
    if not pcall(next_turn, gate, how == 'doubted') then show('SREM', S .. 'lines', gate) end
  end
end

-- How many bells are owed to a queue: no bell was rung for those that got their turn, and stand there still.
function gates.owed(q, count)
  local theirs = 0
  for _, rec in ipairs(turned) do
    if rec.p == 'job' and queue_of(rec) == q then theirs = theirs + 1 end
  end
  return math.max(count - theirs, 0) + theirs
end
