-- What start and commit share: a run begins, or waits behind the one under way. Put between common.lua and either.
-- s: thread run sum kind graph queue task node jid birth mode count answers at base parent (see start.lua)

-- Is it one of the questions that a task waits with?
local function asks(rec, question) return rec.p == 'asked' and string.find(' ' .. (rec.i or '') .. ' ', ' ' .. question .. ' ', 1, true) end

local function goes_on(s) return s.kind == 'continue' or s.kind == 'resume' end

-- Why it can't begin now: busy | nothing | asked | stale; nothing if it can.
local function refusal(s, T)
  if T and T.status == 'running' and (s.mode == 'reject' or goes_on(s)) then return 'busy' end
  if not goes_on(s) then return end
  if not T or T.left + T.failed + T.asked + T.halted == 0 or T.status == 'done' then return 'nothing' end
  if T.left + T.failed + T.halted + #s.answers == 0 then return 'asked' end
  if (T.cleaning or '') ~= '' then return 'busy' end
  if s.at and (T.n ~= s.at[1] or T.digest ~= s.at[2]) then return 'stale' end
  for _, a in ipairs(s.answers) do
    local rec = a[2] ~= '' and record(s.thread, a[1])
    if a[2] ~= '' and not (rec and asks(rec, a[2])) then return 'stale' end
  end
end

-- An answer: its task is open again. One that comes before its question waits in the thread's hash.
local function answer(s, T, a, value)
  local question = a[2] ~= '' and { 'question', a[2] } or {}
  local id = fact(s.thread, T, 'task_answered', 'task', a[1], 'answer', value, unpack(question))
  if a[2] == '' then
    T.early, T.early_task = id, a[1]
    return
  end
  local rec = record(s.thread, a[1])
  if rec.p == 'asked' then T.asked, T.left = T.asked - 1, T.left + 1 end
  rec.an, rec.i, rec.p = rec.an and rec.an .. ' ' .. id or id, nil, 'stopped'
  keep(s.thread, a[1], rec)
end

-- Write it. Its arguments begin at ARGV[at]: the fields of its fact, then one value per answer. `give(task, rec)` places the
-- first task of a run that begins; those of one that goes on are unmade. Second answer: did it begin?
local function begin_run(s, T, at, give)
  local busy = T and T.status == 'running'
  local fields = { unpack(ARGV, at, at + s.count - 1) }
  if not T then
    T = { birth = s.birth, n = 0, digest = s.birth, step = -2, jid = s.jid, left = 0, failed = 0, asked = 0, halted = 0, jobs = 0,
      width = 0, rec = '' }
    fields[#fields + 1] = 'birth'
    fields[#fields + 1] = s.birth
  end
  if not busy then
    fields[#fields + 1] = 'step'
    fields[#fields + 1] = s.base or T.step
  end
  if goes_on(s) then
    fields[#fields + 1] = 'of'
    fields[#fields + 1] = T.rec
  end
  local entry = call('XADD', S .. 'log:' .. s.thread, T.n .. '-*', 'v', '1', 'kind', busy and 'run_queued' or 'run_started',
    'at', NOW, 'run', s.run, unpack(fields))
  threads[s.thread] = T
  call('HSET', S .. 'runs:' .. s.thread, s.run, (busy and 'queued ' or 'running ') .. entry .. ' ' .. s.sum)
  if busy then
    call('RPUSH', S .. 'queued:' .. s.thread, cjson.encode({ run = s.run, entry = entry, graph = s.graph, queue = s.queue,
      task = s.task, node = s.node, parent = s.parent }))
    return entry, false
  end
  T.parent = s.parent or ''
  if not goes_on(s) then
    local rec = begin(s.thread, T, s.run, entry, s.node, s.graph, s.queue)
    T.base = s.base or T.base
    give(s.task, rec)
    return entry, true
  end
  T.run, T.base, T.conf = s.run, T.step, entry
  T.left, T.failed, T.halted, T.jobs = T.left + T.failed + T.halted, 0, 0, 0
  for i, a in ipairs(s.answers) do answer(s, T, a, ARGV[at + s.count + i - 1]) end
  status(s.thread, T, 'running')
  call('LPUSH', S .. 'unmade:' .. s.thread, cjson.encode({ reopen = '0' }))
  return entry, true
end

-- Tasks of a run that goes on: for an inline caller as many as it offers for, else jobs.
local function make_on(thread, T)
  if not H.own then return make_jobs(thread, T) end
  local tokens = H.tokens or {}
  make(thread, T, function() return #tokens > 0 end,
    function(task, rec) if #tokens > 0 then lease(thread, T, task, rec, table.remove(tokens, 1)) else push(thread, T, task, rec) end end)
end
