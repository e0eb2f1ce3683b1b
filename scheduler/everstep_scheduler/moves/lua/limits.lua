-- Limits: how many tasks of a node may be leased at once, and how many may begin within a time. Each limit has a gate, or one
-- per key (`lk` of the thread, what a run said as its limit_key).
--   limited        the graphs that have limits, a line each; alive() brings it along, so where nobody has limits they cost nothing
--   limits:<graph> {node -> {id, c = at once, n = begin within ms, k = 1: per key}} (JSON)
--   slots:<gate>   set: jobs whose tasks are leased, or were let in and wait in their queue
--   starts:<gate>  zset: jobs by the time when they began, inf for those that were let in
--   line:<gate>    zset: `<n> <task> <thread>` that wait, by when they came
--   lines          set: gates with a line
-- Whoever would lease a task asks `gates.open`; a slot is let go where a lease or a job ends, and before the script ends the
-- first in line are let in: at the front of their queues, with their slots. Nobody passes those who wait.
local known, freed, passed, standing = {}, {}, {}, 0
local POKED = 10

-- There may be room at a gate; those freed first are served first.
local function free(gate)
  if freed[gate] then return end
  freed[gate] = true
  freed[#freed + 1] = gate
end

-- The gate of a task and its numbers; nothing for nearly all.
local function gate_of(T, rec)
  if gates.graphs == nil then gates.graphs = call('GET', S .. 'limited') end
  if not gates.graphs or not string.find(gates.graphs, '\n' .. T.graph .. '\n', 1, true) then return end
  if known[T.graph] == nil then
    local text = show('GET', S .. 'limits:' .. T.graph)
    known[T.graph] = type(text) == 'string' and decoded(text) or false
  end
  local limit = known[T.graph] and known[T.graph][rec.n]
  if type(limit) ~= 'table' or type(limit.id) ~= 'string' then return end
  return limit.k and limit.id .. '|' .. (T.lk or '') or limit.id, limit
end

-- Is there room for one more, when so many were let in and are not counted yet? If not, when there may be (ms), where time tells.
local function room(gate, limit, more)
  if counts(limit.c) and call('SCARD', S .. 'slots:' .. gate) + more >= limit.c then return false end
  if not counts(limit.n) then return true end
  local key = S .. 'starts:' .. gate
  call('ZREMRANGEBYSCORE', key, '-inf', NOW - limit.ms)
  if call('ZCARD', key) + more < limit.n then return true end
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  return false, first and first ~= 'inf' and first + limit.ms + 1
end

-- The task waits in line, where it came when it came first. It has left its place.
local function stand(thread, T, task, rec, gate)
  if not rec.j then make_job(thread, T, task, rec) end
  standing = standing + 1
  rec.p, rec.g, rec.t, rec.o, rec.r = 'line', gate, nil, nil, nil
  rec.z = rec.z or string.format('%.0f', clock[1] * 1000000 + clock[2] + standing) -- as text: JSON keeps 14 digits of a number
  call('ZADD', S .. 'line:' .. gate, rec.z, place_of(thread, T, task))
  call('SADD', S .. 'lines', gate)
  call('HSET', R .. 'job:' .. rec.j, 'status', 'deferred')
  show('ZADD', R .. 'deferred:' .. queue_of(rec), math.floor(NOW / 1000), rec.j)
  T.jobs = T.jobs + 1
  moved = moved + 1
  keep(thread, task, rec)
end

-- May the task be leased now? If not, it stands in line; it must have left its place.
function gates.open(thread, T, task, rec)
  if rec.g then return true end
  local gate, limit = gate_of(T, rec)
  if not gate then return true end
  if call('EXISTS', S .. 'line:' .. gate) == 0 then
    local fits, due = room(gate, limit, 0)
    if fits then
      rec.g = gate
      return true
    end
    if due then call('ZADD', S .. 'wakes', due, 'line ' .. gate) end
  else
    free(gate) -- there may be room for the first of the line
  end
  stand(thread, T, task, rec, gate)
  return false
end

-- Lease it under the first token, or have it stand in line.
function gates.lease(thread, T, task, rec, tokens)
  if not gates.open(thread, T, task, rec) then return false end
  lease(thread, T, task, rec, table.remove(tokens, 1))
  return true
end

-- Whoever has a lease holds a slot, whatever the numbers say: of a lease that is adopted.
function gates.adopt(T, rec) rec.g = gate_of(T, rec) end

-- It is leased: its slot is its job's, and it begins now.
function gates.begins(T, rec)
  call('SADD', S .. 'slots:' .. rec.g, rec.j)
  local _, limit = gate_of(T, rec)
  if not (limit and counts(limit.n)) then return end
  local key = S .. 'starts:' .. rec.g
  call('ZREMRANGEBYSCORE', key, '-inf', NOW - limit.ms)
  call('ZADD', key, NOW, rec.j)
  call('PEXPIRE', key, 2 * DAY_MS)
  free(rec.g) -- when the next may begin is known only now
end

-- A gate with room, perhaps: of a limit, or of a turn.
local function looked_at(gate, why)
  if gates.is_turn(gate) then passed[gate] = passed[gate] or why or true else free(gate) end
end

function gates.let_go(rec)
  call('SREM', S .. 'slots:' .. rec.g, rec.j or '')
  if rec.p == 'job' then call('ZREM', S .. 'starts:' .. rec.g, rec.j or '') end -- let in, and never begun
  looked_at(rec.g)
  rec.g = nil
end

function gates.unline(thread, T, task, rec)
  call('ZREM', S .. 'line:' .. rec.g, place_of(thread, T, task))
  if rec.j then show('ZREM', R .. 'deferred:' .. queue_of(rec), rec.j) end
  T.jobs = math.max(T.jobs - 1, 0)
  rec.g = nil
end

function gates.wake(gate) looked_at(gate) end

-- The first of a line, as many as there is room for; at most 250 a call, then claims and the sweep go on.
local function let_in(gate)
  local key, found, looked, at = S .. 'line:' .. gate, {}, 0, 0
  while true do
    local first = call('ZRANGE', key, at, at)[1]
    if not first then
      if at == 0 then call('SREM', S .. 'lines', gate) end
      break
    end
    if looked >= MOVE_MAX or moved + #found >= MOVE_MAX then
      call('ZADD', S .. 'wakes', NOW, 'line ' .. gate)
      break
    end
    looked = looked + 1
    local thread, T, task, rec = at_place(first)
    if not (thread and rec.p == 'line' and rec.g == gate and T.status == 'running') then
      call('ZREM', key, first)
    elseif type(show('LLEN', R .. 'queue:' .. queue_of(rec))) == 'table' then
      at = at + 1 -- can't be pushed to, and must not keep the others waiting
    else
      local now, limit = gate_of(T, rec)
      local fits, due = true, nil
      if now == gate then fits, due = room(gate, limit, #found) end
      if due then call('ZADD', S .. 'wakes', due, 'line ' .. gate) end
      if not fits then break end
      gates.unline(thread, T, task, rec)
      rec.p = 'moving'
      found[#found + 1] = { thread, T, task, rec, now == gate }
    end
  end
  for i = #found, 1, -1 do
    local thread, T, task, rec, holds = unpack(found[i])
    if holds then rec.g = gate end
    push(thread, T, task, rec, true)
    if holds then
      call('SADD', S .. 'slots:' .. gate, rec.j)
      local _, limit = gate_of(T, rec)
      if counts(limit.n) then call('ZADD', S .. 'starts:' .. gate, 'inf', rec.j) end
    end
  end
end

-- What was let go is for those who wait. Called before a script takes from the queues, and before it ends.
function gates.serve()
  while #freed > 0 do
    local gate = table.remove(freed, 1)
    freed[gate] = nil
    if not pcall(let_in, gate) then show('SREM', S .. 'lines', gate) end -- keys that are not ours; doctor tells of it
  end
  gates.pass()
end

-- A few lines are looked at without a reason, by the sweep: a limit may have changed meanwhile.
function gates.poke()
  local some = show('SRANDMEMBER', S .. 'lines', POKED)
  for _, gate in ipairs(some.err and {} or some) do looked_at(gate, 'doubted') end
end
