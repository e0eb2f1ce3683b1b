-- adopt: a thread's indexes and jobs are made anew from what its log says. Only for whoever holds the recovery lock.
-- H: lock lock_ms(the lock is extended by it) thread salt
--    first(1: begin anew) fresh(1: only if the thread has no hash) fields = {name -> value of the thread's hash} since(ms)
--    runs = {run, text, ...} queued = {JSON...} unmade = {JSON...}
--    tasks = { {task, rec, reason or due ms}, ... }; rec.p = done | failed | stopped | asked | wake | child | job; at most 250 a call
-- A task whose lease is announced for this very checkpoint stays leased to its worker.
-- Answers JSON: status = ok | lost (the lock) | known; kept = leases that live on
if call('GET', S .. 'recovery') ~= H.lock then return '{"status":"lost"}' end
if H.fresh and call('EXISTS', S .. 'thread:' .. H.thread) == 1 then return '{"status":"known"}' end
call('PEXPIRE', S .. 'recovery', H.lock_ms)
if H.first then
  call('UNLINK', S .. 'open:' .. H.thread, S .. 'thread:' .. H.thread, S .. 'unmade:' .. H.thread, S .. 'queued:' .. H.thread,
    S .. 'runs:' .. H.thread)
  for _, word in ipairs({ 'running', 'done', 'failed', 'interrupted', 'cancelled' }) do
    call('ZREM', S .. 'threads:' .. word, H.thread)
  end
  call('ZADD', S .. 'threads:' .. H.fields.status, H.since, H.thread)
  threads[H.thread] = H.fields
end
for i = 1, #H.runs, 2 do call('HSET', S .. 'runs:' .. H.thread, H.runs[i], H.runs[i + 1]) end
for _, element in ipairs(H.queued) do call('RPUSH', S .. 'queued:' .. H.thread, element) end
for _, element in ipairs(H.unmade) do call('RPUSH', S .. 'unmade:' .. H.thread, element) end

local function announced(T, task)
  local said = call('HGET', S .. 'announced', T.n .. ' ' .. task .. ' ' .. H.thread)
  said = said and cjson.decode(said)
  return said and said.d == T.digest and said
end

-- Has the run that a task called come to its rest, as far as the indexes of its thread are there already?
local function rested(rec)
  local run, called = string.match(rec.cl, '^(%S+) (.*)$')
  local word = called and call('HGET', S .. 'runs:' .. called, run)
  word = word and string.match(word, '^%S+')
  return word and word ~= 'running' and word ~= 'queued'
end

local T, kept = load(H.thread), 0
for _, named in ipairs(H.tasks) do
  local task, rec = named[1], named[2]
  if rec.p == 'child' and rested(rec) then rec.p = 'job' end
  local said = T.status == 'running' and rec.p ~= 'done' and rec.p ~= 'failed' and rec.p ~= 'asked' and rec.p ~= 'child' and announced(T, task)
  if said then
    rec.a = said.a - 1
    H.owner, H.lease_ms = said.o, said.L
    gates.adopt(T, rec)
    lease(H.thread, T, task, rec, said.t)
    kept = kept + 1
  elseif rec.p == 'job' then
    push(H.thread, T, task, rec)
  elseif rec.p == 'wake' then
    local id = make_job(H.thread, T, task, rec)
    call('ZADD', S .. 'wakes', named[3], place_of(H.thread, T, task))
    call('HSET', R .. 'job:' .. id, 'status', 'scheduled')
    show('ZADD', R .. 'scheduled:' .. queue_of(rec), math.ceil(named[3] / 1000), id)
    keep(H.thread, task, rec)
  elseif rec.p == 'failed' then
    show_failed(H.thread, T, task, rec, named[3])
    keep(H.thread, task, rec)
  else
    keep(H.thread, task, rec)
  end
end
out.leases = {}
out.status, out.kept = 'ok', kept
return finish()
