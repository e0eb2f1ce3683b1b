-- Resting: how runs begin, end and are stopped, and what becomes of the tasks that are open then.

-- What a task called is revoked after it: by the canceller, which is told of it, or by the sweep, which finds it here.
local function disown(rec)
  local run, called = string.match(rec.cl or '', '^(%S+) (.*)$')
  rec.ct = 1
  if not called then return end
  show('RPUSH', S .. 'revoked', cjson.encode({ run = run, thread = called }))
  out.children = out.children or {}
  out.children[#out.children + 1] = { called, run }
end

-- The tasks of steps that were given up leave their places, a few pages a call. Each goes from the hash as it does, so that
-- one that a scan shows twice leaves once; and it leaves whether its job is there or not: a claim may have dropped that.
local function clean_discards(budget)
  for _ = 1, PAGES_MAX do
    local named = budget > 0 and call('LINDEX', S .. 'discards', 0)
    if not named then return end
    local d = decoded(named) or {}
    local key, stem = tostring(d.key), S .. 'discard:'
    local ours = string.sub(key, 1, #stem) == stem and type(d.thread) == 'string' and type(d.n) == 'number'
    local page = ours and show('HSCAN', key, tostring(d.cursor), 'COUNT', math.min(budget, MOVE_MAX / PAGES_MAX))
    if not page or page.err then page = { '0', {} } end
    for i = 1, #page[2], 2 do
      local rec = sound(page[2][i + 1])
      if rec and call('HDEL', key, page[2][i]) == 1 then
        if rec.p == 'child' then disown(rec) end
        if rec.j then
          leave(d.thread, { graph = d.graph, n = d.n, jobs = 0 }, page[2][i], rec, true)
          forget_job(rec)
          budget = budget - 1
        end
      end
    end
    if page[1] == '0' then
      if ours then call('UNLINK', key) end
      call('LPOP', S .. 'discards')
    else
      d.cursor = page[1]
      call('LSET', S .. 'discards', 0, cjson.encode(d))
    end
  end
end

-- Open tasks of a cancelled run leave their places, about 250 records a call, and wait for a run that continues. The
-- cursor is in the thread's hash, '' at the end; the canceller goes on with it, or the sweep.
local function withdraw(thread, T, cursor)
  local seen, pages = 0, 0
  repeat
    local page = call('HSCAN', S .. 'open:' .. thread, cursor, 'COUNT', 100)
    cursor, pages = page[1], pages + 1
    for i = 1, #page[2], 2 do
      local rec = sound(page[2][i + 1])
      seen = seen + 1
      if rec and rec.p ~= 'done' and rec.p ~= 'stopped' and rec.p ~= 'failed' and rec.p ~= 'asked' then
        if rec.p == 'child' then disown(rec) end
        leave(thread, T, page[2][i], rec, true)
        forget_job(rec)
        rec.p, rec.t, rec.o = 'stopped', nil, nil
        keep(thread, page[2][i], rec)
      end
    end
  until cursor == '0' or seen >= MOVE_MAX or pages >= PAGES_MAX
  T.cleaning = cursor == '0' and '' or cursor
end

-- All open tasks leave their places; what is too much for a call the sweep goes on with.
local function stop_all(thread, T)
  withdraw(thread, T, '0')
  if T.cleaning ~= '' then call('RPUSH', S .. 'cleanings', thread) end
end

-- The step under way is given up: its tasks leave their places, at most 250 now, the rest in the sweep.
local function discard_step(thread, T)
  local from = S .. 'open:' .. thread
  call('DEL', S .. 'unmade:' .. thread)
  if call('EXISTS', from) == 1 then
    local key = S .. 'discard:' .. H.salt .. ':' .. thread
    call('RENAME', from, key)
    call('RPUSH', S .. 'discards', cjson.encode({ key = key, cursor = '0', thread = thread, graph = T.graph or '', n = T.n }))
    clean_discards(MOVE_MAX)
  end
end

-- A run begins: its one task is open. `give` places it (a queue, or a lease for an inline caller).
local function begin(thread, T, run, rec_id, node, graph, queue, limit_key, fairness_key)
  discard_step(thread, T)
  T.graph, T.queue, T.own = graph, queue, ''
  if limit_key or T.lk then T.lk = limit_key or '' end
  if fairness_key or T.fk then T.fk = fairness_key or '' end
  T.run, T.rec, T.conf, T.base = run, rec_id, rec_id, T.step
  T.width, T.left, T.jobs, T.failed, T.asked, T.halted, T.cleaning, T.early = 1, 1, 0, 0, 0, 0, '', ''
  status(thread, T, 'running')
  run_is(thread, run, 'running')
  return fresh_record(node, T.queue, 0)
end

-- Is the checkpoint there that a run builds on, `on` = {n, digest}? Its thread may have been deleted since it was looked at,
-- and begun anew.
local function grounded(thread, T, on)
  if not on then return true end
  if not T then return false end
  if on[1] == 0 then return T.birth == on[2] end
  local at = on[1] .. '-0'
  local found = call('XRANGE', S .. 'log:' .. thread, at, at)[1]
  for i = 1, found and #found[2] or 0, 2 do
    if found[2][i] == 'digest' then return found[2][i + 1] == on[2] end
  end
  return false
end

-- A task that is open again: for the inline caller that made it so, else at the back of its queue, where refill may take
-- it if nothing waits ahead.
local function hand(thread, T, task, rec)
  local token = H.own and table.remove(H.tokens or {}, 1)
  if token then lease(thread, T, task, rec, token)
  elseif H.queues then coming[#coming + 1] = { thread, T, task, rec }
  else push(thread, T, task, rec) end
end

-- A run that a task of another thread called has come to its rest: that task is to look.
local function wake_caller(thread, T)
  local n, task, caller = string.match(T.parent or '', '^(%d+) (%S+) (.*)$')
  if not caller or caller == thread then return end
  local P, rec = opened(caller, task)
  if not rec or rec.p ~= 'child' or P.n ~= tonumber(n) or P.status ~= 'running' or rec.cl ~= T.run .. ' ' .. thread then return end
  if type(show('LLEN', R .. 'queue:' .. queue_of(rec))) == 'table' then return end -- can't be pushed to; doctor finds it
  hand(caller, P, task, rec)
end

-- A run ends. `done` is said by its last checkpoint, everything else by `run_rested`. Then the next queued input starts.
local function rest(thread, T, to, ...)
  if to ~= 'done' then fact(thread, T, 'run_rested', 'status', to, ...) end
  run_is(thread, T.run, to)
  status(thread, T, to)
  wake_caller(thread, T)
  local q
  for _ = 1, REFUSED_MAX do -- what is none of our elements is passed over
    local element = show('LPOP', S .. 'queued:' .. thread)
    q = type(element) == 'string' and (decoded(element) or {})
    if not q or (q.run and q.entry and q.node and q.graph and q.queue and q.task) then break end
    q = nil
  end
  if q then
    T.run, T.parent = q.run, q.parent or ''
    local step = T.step
    fact(thread, T, 'run_started', 'of', q.entry, 'step', step)
    local rec = begin(thread, T, q.run, q.entry, q.node, q.graph, q.queue, q.lk, q.fk)
    T.own = q.own or ''
    push(thread, T, q.task, rec)
  end
end

-- The run under way is stopped, and another one begins in the same script: inputs that wait stay behind that. Its tasks
-- are given up as it begins, so no commit of theirs passes any more.
local function stop_run(thread, T, actor)
  fact(thread, T, 'run_cancel_asked', 'actor', actor)
  fact(thread, T, 'run_rested', 'status', 'cancelled', 'actor', actor)
  run_is(thread, T.run, 'cancelled')
  status(thread, T, 'cancelled')
  wake_caller(thread, T)
end

-- A task of the open step has ended for good and is no longer among those that keep the run going.
local function resolved(thread, T)
  T.left = T.left - 1
  if T.left > 0 then return end
  if T.failed > 0 then return rest(thread, T, 'failed') end
  if T.asked + T.halted > 0 then return rest(thread, T, 'interrupted') end
  local rec = fresh_record('__join__', T.queue, 0)
  T.left = 1
  local token = table.remove(H.tokens or {}, 1)
  if token then lease(thread, T, 'join', rec, token) else push(thread, T, 'join', rec, true) end
end

local function fail(thread, T, task, rec, reason)
  rec.p = 'failed'
  if rec.cl then rec.ct = 1 end
  show_failed(thread, T, task, rec, reason)
  keep(thread, task, rec)
  T.failed = T.failed + 1
  resolved(thread, T)
end

-- The run under way is revoked: no commit of it passes after this. What it called follows.
local function revoke(thread, T, actor)
  fact(thread, T, 'run_cancel_asked', 'actor', actor)
  stop_all(thread, T)
  local left = T.left + T.failed + T.halted
  T.failed, T.halted = 0, 0
  rest(thread, T, 'cancelled', 'actor', actor)
  if T.status == 'cancelled' then T.left = left end
end

-- An attempt's process died (`reaped`: its pool saw it) or its lease ran out. After that the task may be a suspect.
-- Nothing is done, and false the answer, while something that is not ours stands at the end of the log.
local function lost(thread, T, task, rec, reaped)
  local alone = rec.s
  if not try_fact(thread, T, T.run, 'task_lost', 'task', task, 'attempt', rec.a, 'token', rec.t, 'by', rec.o, 'node', rec.n,
    'error', reaped and 'its process died' or 'its lease ran out') then return false end
  unlease(rec)
  show('HINCRBY', S .. 'stats', 'lost', 1)
  rec.l = (rec.l or 0) + 1
  if not reaped then rec.x = (rec.x or 0) + 1 end
  if alone then rec.k = (rec.k or 0) + 1 end
  if (rec.k or 0) >= LOSSES_ALONE_MAX then
    fact(thread, T, 'task_failed', 'task', task, 'attempt', rec.a, 'node', rec.n, 'error', cjson.encode({
      type = 'Poison', text = 'its process died ' .. rec.l .. ' times, ' .. rec.k .. ' of them while it ran alone' }))
    rec.k, rec.s = 0, nil
    show('HINCRBY', S .. 'stats', 'poison', 1)
    fail(thread, T, task, rec, 'poison: its process died ' .. rec.l .. ' times; see `everstep history`, then `everstep retry`')
    return true
  end
  if reaped or (rec.x or 0) >= 2 then rec.s = 1 end
  push(thread, T, task, rec, true)
  return true
end
