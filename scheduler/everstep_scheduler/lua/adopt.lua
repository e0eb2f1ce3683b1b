-- adopt: a thread's indexes and jobs are made anew from what its log says. Only while a rebuild holds the lock.
-- H: thread first(1: begin anew) fields = {name -> value of the thread's hash} runs = {run -> text} queued = {JSON...}
--    unmade = {JSON...} tasks = { {task, node, queue, timeout_s, place(job|failed|stopped), attempt, lost, reason}, ... }
--    at most 250 a call; salt; owner etc. are taken from the leases that live on
-- A task whose lease is announced (or still in our own record of the same checkpoint) stays leased to its worker.
-- Answers JSON: status = ok; kept = leases that live on
local key = S .. 'open:' .. H.thread
if H.first then
  local old = call('HMGET', S .. 'thread:' .. H.thread, 'n', 'digest')
  local same = old[1] == tostring(H.fields.n) and old[2] == H.fields.digest
  if not same then call('DEL', key) end
  call('DEL', S .. 'thread:' .. H.thread, S .. 'unmade:' .. H.thread, S .. 'queued:' .. H.thread, S .. 'runs:' .. H.thread)
  for run, text in pairs(H.runs) do call('HSET', S .. 'runs:' .. H.thread, run, text) end
  for _, element in ipairs(H.queued) do call('RPUSH', S .. 'queued:' .. H.thread, element) end
  for _, element in ipairs(H.unmade) do call('RPUSH', S .. 'unmade:' .. H.thread, element) end
  local T = {}
  for name, value in pairs(H.fields) do T[name] = value end
  threads[H.thread] = T
  for _, word in ipairs({ 'running', 'done', 'failed', 'interrupted', 'cancelled' }) do
    call('ZREM', S .. 'threads:' .. word, H.thread)
  end
  call('ZADD', S .. 'threads:' .. T.status, NOW, H.thread)
end
local T, kept = load(H.thread), 0
for _, t in ipairs(H.tasks) do
  local task = t[1]
  local rec = fresh_record(t[2], t[3], t[4])
  rec.a, rec.l = t[6], t[7]
  local old = record(H.thread, task)
  local said = call('HGET', S .. 'announced', T.n .. ' ' .. task .. ' ' .. H.thread)
  if said then said = cjson.decode(said) elseif old and old.p == 'lease' then said = old end
  if t[5] == 'job' and said then
    rec.a, rec.t, rec.o, rec.L, rec.j = said.a, said.t, said.o, said.L, said.j
    H.owner, H.lease_ms, rec.a = rec.o, rec.L, rec.a - 1
    make_job(H.thread, T, task, rec)
    lease(H.thread, T, task, rec, rec.t)
    out.leases = {}
    kept = kept + 1
  elseif t[5] == 'job' then
    push(H.thread, T, task, rec)
  elseif t[5] == 'failed' then
    rec.p = 'failed'
    show_failed(H.thread, T, task, rec, t[8])
    keep(H.thread, task, rec)
  else
    rec.p = 'stopped'
    keep(H.thread, task, rec)
  end
end
out.status, out.kept = 'ok', kept
return finish()
