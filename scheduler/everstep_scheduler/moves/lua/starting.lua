-- What start and commit share: a run begins, or waits behind the one under way. Put between common.lua and either.
-- s: thread run sum kind graph queue task node jid birth mode count answers at base parent command caller lk fk (see start.lua)

-- Is it one of the questions that a task waits with?
local function asks(rec, question) return rec.p == 'asked' and string.find(' ' .. (rec.i or '') .. ' ', ' ' .. question .. ' ', 1, true) end

local function goes_on(s) return s.kind == 'continue' or s.kind == 'resume' end

-- Why it can't begin now: busy | nothing | asked | stale; nothing if it can.
local function refusal(s, T)
  if T and T.status == 'running' and (s.mode == 'reject' or goes_on(s)) then return 'busy' end
  if not goes_on(s) then return end
  local command = s.command
  if not T or (command and T.n == 0) then return 'nothing' end
  if not command and (T.left + T.failed + T.asked + T.halted == 0 or T.status == 'done') then return 'nothing' end
  if not command and T.left + T.failed + T.halted + #s.answers == 0 then return 'asked' end
  if (T.cleaning or '') ~= '' then return 'busy' end
  if s.at and (T.n ~= s.at[1] or T.digest ~= s.at[2]) then return 'stale' end
  if command and T.run ~= command.after then return 'stale' end
  local opens = T.left + T.failed + T.halted > 0 or command
  for _, a in ipairs(s.answers) do
    local rec = a[2] ~= '' and record(s.thread, a[1])
    if a[2] ~= '' and not (rec and asks(rec, a[2])) then return 'stale' end
    opens = opens or a[2] ~= ''
  end
  if not opens then return 'stale' end -- before the question, it was said, but all that is open has asked meanwhile
end

-- Where the values of a Command's parts begin in ARGV: behind the fields of the fact, from `at` on, and the answers.
local function parts_at(s, at) return at + s.count + #(s.answers or {}) end

-- The queues of the tasks that a Command adds.
local function queues_of(s, at)
  local found = {}
  for _, t in ipairs(s.command and s.command.tasks or {}) do found[#found + 1] = t[2] end
  for i = 1, #(s.command and s.command.parts or {}) do
    for _, row in ipairs(cjson.decode(ARGV[parts_at(s, at) + 3 * (i - 1)])) do found[#found + 1] = row[2] end
  end
  return found
end

-- The signature that a caller gave for a fact, if it did.
local function signed(sig)
  if sig then return 'sig', sig end
end

-- A join that failed waits again, for what is added.
local function drop_join(thread, T)
  local rec = record(thread, 'join')
  if not rec then return end
  leave(thread, T, 'join', rec)
  forget_job(rec)
  call('HDEL', S .. 'open:' .. thread, 'join')
  T.left = T.left - 1
end

-- Adds a Command's tasks to the open step, each said by a fact; the first one's name is the answer.
local function add_tasks(s, T, entry, at)
  local k, key, first, sends = string.match(entry, '%-(%d+)$'), S .. 'unmade:' .. s.thread, nil, parts_at(s, at)
  local function add(task, element, width)
    first = first or task
    T.width, T.left = T.width + width, T.left + width
    call('RPUSH', key, cjson.encode(element))
  end
  if #s.command.tasks + #s.command.parts > 0 then drop_join(s.thread, T) end
  for i, t in ipairs(s.command.tasks) do
    local task = 'g' .. k .. '_' .. (i - 1)
    fact(s.thread, T, 'task_added', 'task', task, 'node', t[1], 'queue', t[2], 'timeout_s', t[3])
    add(task, { task = task, node = t[1], queue = t[2], timeout_s = t[3] }, 1)
  end
  for i, count in ipairs(s.command.parts) do
    local tasks, given, sum = unpack(ARGV, sends + 3 * (i - 1), sends + 3 * i - 1)
    local part = fact(s.thread, T, 'part', 'tasks', tasks, 'sends', given, 'sum', sum, signed(s.command.sigs and s.command.sigs[i]))
    fact(s.thread, T, 'task_added', 'parts', '[["' .. part .. '", ' .. count .. ']]')
    local named = 'g' .. string.match(part, '%-(%d+)$')
    add('s' .. named .. '_0', { part = part, k = named, from = 0, tasks = tasks }, count)
  end
  return first
end

-- An answer: its task is open again. One that comes before its question waits in the thread's hash. `first`: the task that it
-- is for if it names none.
local function answer(s, T, a, value, first)
  local task = a[1] ~= '' and a[1] or first
  local said = { signed(a[3]) }
  if a[2] ~= '' then said[#said + 1], said[#said + 2] = 'question', a[2] end
  local id = fact(s.thread, T, 'task_answered', 'task', task, 'answer', value, unpack(said))
  if a[2] == '' then
    T.early, T.early_task = id, task
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
      task = s.task, node = s.node, parent = s.parent, own = s.caller, lk = s.lk, fk = s.fk }))
    return entry, false
  end
  T.parent = s.parent or ''
  if not goes_on(s) then
    local rec = begin(s.thread, T, s.run, entry, s.node, s.graph, s.queue, s.lk, s.fk)
    T.base, T.own = s.base or T.base, s.caller or ''
    give(s.task, rec)
    return entry, true
  end
  T.run, T.base, T.conf, T.own = s.run, T.step, entry, s.caller or ''
  T.lk, T.fk = s.lk or T.lk, s.fk or T.fk
  T.left, T.failed, T.halted, T.jobs = T.left + T.failed + T.halted, 0, 0, 0
  local first = s.command and add_tasks(s, T, entry, at)
  for i, a in ipairs(s.answers) do answer(s, T, a, ARGV[at + s.count + i - 1], first) end
  local updates = s.command and s.command.updates
  if updates then
    T.over = (T.over or '') == '' and entry or T.over .. ' ' .. entry
    T.left, T.asked = T.left + T.asked, 0
  end
  status(s.thread, T, 'running')
  if T.left == 0 then -- a Command without a goto, on a thread that is done
    fact(s.thread, T, 'run_rested', 'status', 'done')
    rest(s.thread, T, 'done')
  else
    call('LPUSH', S .. 'unmade:' .. s.thread, cjson.encode({ reopen = '0', over = updates and #T.over or nil }))
  end
  return entry, true
end

-- Tasks of a run that goes on: for an inline caller as many as it offers for, else jobs.
local function make_on(thread, T)
  if H.own then make_own(thread, T) else make_jobs(thread, T) end
end
