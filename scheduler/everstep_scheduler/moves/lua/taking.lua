-- Taking: offered tokens get jobs from the queues; bells for what is left behind; the end of every script.

local function by_token(token)
  local named = call('HGET', S .. 'lease', token)
  if not named then return nil end
  local task, thread = string.match(named, '^(%S+) (.*)$')
  if not thread then return nil end
  local T, rec = opened(thread, task)
  if not rec or rec.t ~= token then return nil end
  return thread, T, task, rec
end

-- Offered tokens that are leased already: this is a resend, and they are the answer.
local function resent()
  for _, token in ipairs(H.tokens or {}) do
    local thread, T, task, rec = by_token(token)
    if thread then out.leases[#out.leases + 1] = row(thread, T, task, rec) end
  end
  return #out.leases > 0
end

local function wake_due(budget)
  local due = call('ZRANGEBYSCORE', S .. 'wakes', '-inf', NOW, 'LIMIT', 0, budget)
  for _, member in ipairs(due) do
    local thread, T, task, rec = at_place(member)
    local gate = string.match(member, '^line (.*)$')
    if gate then gates.wake(gate) end
    if thread and rec.p == 'wake' then
      unwake(thread, T, task, rec)
      push(thread, T, task, rec)
    else
      call('ZREM', S .. 'wakes', member)
    end
  end
  return #due
end

-- A job that is not ours, or that says nothing we know: shown as failed, with the reason. Nothing of it is run.
local function refuse(id, q, why)
  show('HSET', R .. 'job:' .. id, 'status', 'failed', 'ended_at', now_iso(), 'exc_info', 'refused by everstep: ' .. why)
  show('ZADD', R .. 'failed:' .. q, math.floor(NOW / 1000) + YEAR_S, id)
  if #out.refused < REFUSED_MAX then out.refused[#out.refused + 1] = id .. ' on queue ' .. q .. ': ' .. why end
end

-- The task that a job names; nil and why if it is none of ours, and true if it is another namespace's; nothing if there is no
-- such job. RQ packs `data` when it saves a job (`rq requeue`), so we read our own field, which it leaves alone.
local function ours(id)
  local key = R .. 'job:' .. id
  local named = show('HSTRLEN', key, 'everstep')
  if type(named) == 'table' then return nil, 'its key is no hash' end
  if named > NAMED_MAX or (named == 0 and call('HSTRLEN', key, 'data') > NAMED_MAX) then
    return nil, 'its data has over ' .. NAMED_MAX .. ' bytes, which no job of ours has'
  end
  local found = call('HMGET', key, 'everstep', named == 0 and 'data' or 'origin')
  if not found[2] then return end
  local good, d = pcall(cjson.decode, found[1] and '["' .. FUNCTION .. '",null,[],' .. found[1] .. ']' or found[2])
  if not good or type(d) ~= 'table' then return nil, 'its data is not JSON' end
  if d[1] ~= FUNCTION then return nil, 'its function is ' .. string.sub(tostring(d[1]), 1, 80) .. ', not ' .. FUNCTION end
  local a = d[4]
  if type(a) ~= 'table' or type(a.thread) ~= 'string' or type(a.task) ~= 'string' then return nil, 'its arguments name no task' end
  if a.keys and a.keys ~= S then return nil, 'it is of the namespace ' .. string.sub(tostring(a.keys), 1, 80), true end
  return a
end

-- A failed task of a rested run whose job was pushed again (`rq requeue`): a continue run begins with it. Nothing is done,
-- and false the answer, if the log refuses the entry.
local function continue_run(thread, T, run)
  local id = try_fact(thread, T, run, 'run_started', 'of', T.rec, 'step', T.step)
  if not id then return false end
  T.run, T.own = run, ''
  T.base = T.step
  call('HSET', S .. 'runs:' .. thread, run, 'running ' .. id .. ' continue')
  T.left, T.failed, T.halted, T.jobs, T.parent = T.left + T.failed + T.halted, 0, 0, 0, ''
  status(thread, T, 'running')
  return true
end

-- Jobs of another namespace that has the same prefix for RQ: they go back to the end of their queue, for their own workers.
-- Only when all else is done, so that a turn meets none of them twice, and without a bell: nobody of ours can take them.
local strays = {}
local function push_strays()
  for _, s in ipairs(strays) do show('RPUSH', R .. 'queue:' .. s[1], s[2]) end
end

-- A job id from a list: lease its task under the token if it is open and unleased and this is its job.
local function accept(id, q, token)
  local known = fresh[id]
  local thread, task, rec
  if known then
    thread, task, rec = known[1], known[2], known[3]
  else
    local named, why, others = ours(id)
    if others and q ~= '' then
      strays[#strays + 1] = { q, id }
      return false
    end
    if why then return refuse(id, q, why) end
    if not named then return false end
    thread, task = named.thread, named.task
  end
  local T, stored_rec, why = nil, nil, nil
  if known then T = load(thread) else T, stored_rec, why = opened(thread, task) end
  if why then return refuse(id, q, why) end
  local more = T and T.width > 1
  rec = rec or stored_rec
  if not rec or rec.j ~= id then
    call('DEL', R .. 'job:' .. id)
    return false
  end
  if rec.p == 'failed' and T.status ~= 'running' and (T.cleaning or '') == '' and H.spare then
    if not continue_run(thread, T, H.spare) then return false end
    hide_failed(rec)
    rec.p, rec.r = 'moving', nil
    keep(thread, task, rec)
    call('RPUSH', S .. 'unmade:' .. thread, cjson.encode({ reopen = '0' }))
    H.spare, more = nil, true
  elseif T.status ~= 'running' then
    if rec.p == 'job' then -- of a cancelled run whose tasks are still being withdrawn
      unqueue(T, rec)
      forget_job(rec)
      rec.p = 'stopped'
      keep(thread, task, rec)
    end
    return false
  elseif rec.p == 'lease' or rec.p == 'done' then
    return false
  else
    leave(thread, T, task, rec)
    if rec.p == 'failed' then T.failed, T.left = T.failed - 1, T.left + 1 end -- its run still runs: it keeps it going again
  end
  local leased = gates.lease(thread, T, task, rec, { token })
  if leased then moved = moved + 1 end
  if more then make_jobs(thread, T) end
  return leased
end

-- The same; where it fails over keys that we did not write, the others in the list are still to be had.
local function accepted(id, q, token)
  local before = #out.leases
  local good, took = pcall(accept, id, q, token)
  if good then return took end
  if #out.leases > before then return true end
  refuse(id, q, 'its task can not be read; see `everstep doctor`')
  return false
end

-- Nothing waits in the queue: a task that would now be its first is leased without having been there.
local function take_coming(q, tokens)
  for i, c in ipairs(coming) do
    if c and #tokens > 0 and queue_of(c[4]) == q then
      if q ~= c[2].queue then show('SADD', R .. 'queues', R .. 'queue:' .. q) end
      if gates.lease(c[1], c[2], c[3], c[4], tokens) then moved = moved + 1 end
      coming[i] = false
    end
  end
end

-- Fill the offered tokens from the front of the worker's queues, in their order.
local function refill()
  gates.serve()
  local tokens, looked = H.tokens or {}, 0
  for _, q in ipairs(H.queues or {}) do
    local id = true
    while id and #tokens > 0 and looked < MOVE_MAX do
      id = show('LPOP', R .. 'queue:' .. q)
      id = type(id) == 'string' and id -- a key of another type is no queue, and must not be in the way of the others
      looked = looked + 1
      if looked == MOVE_MAX then pushed[q] = (pushed[q] or 0) + 2 end -- not at the end yet: ring, so that somebody goes on
      if id then
        pushed[q] = (pushed[q] or 0) - 1 -- what is left behind rings, not what is merely exchanged
        if accepted(id, q, tokens[1]) then table.remove(tokens, 1) end
        gates.pass()
      end
    end
    if not id then take_coming(q, tokens) end
  end
end

-- A process with free slots left says so; scripts that leave work behind ring as many bells as they leave jobs.
local function wait_for_work()
  if H.proc and H.tokens and #H.tokens > 0 then
    for _, q in ipairs(H.queues) do show('ZADD', S .. 'waiting:' .. q, 'NX', NOW, H.proc) end
  end
end

local function ring(q, count)
  for _ = 1, count do
    local first = show('ZPOPMIN', S .. 'waiting:' .. q)
    if first.err or #first == 0 then return end
    show('RPUSH', S .. 'bell:' .. first[1], q)
    show('PEXPIRE', S .. 'bell:' .. first[1], 5000)
  end
end

local function finish()
  gates.serve()
  push_coming()
  push_strays()
  save()
  write_counts()
  for q, count in pairs(pushed) do
    count = gates.owed(q, count)
    if count > 0 then ring(q, count) end
  end
  if #out.leases == 0 then out.leases = nil end
  if #out.refused == 0 then out.refused = nil end
  return cjson.encode(out)
end
