-- start: a run begins on a thread, or waits behind the one under way.
-- H: thread run sum kind(input|update|continue|resume) graph queue task node jid birth mode(enqueue|reject) salt
--    base: the step that the run builds on, where that is not the last checkpoint's
--    own=1: an inline caller leases the first task itself (owner lease_ms tokens round)
--    count: of the arguments for the fact, which follow ARGV[1]; behind them one value per answer
--    answers = { {task, question}, ... } (continue, resume; at most 250), at = {n, digest} whose questions they answer;
--    question '': it comes before it is asked, for the one task that may ask next
-- Answers JSON: status = started | queued | attached | conflict | busy | rebuild | nothing | asked | stale; entry; leases
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T and call('EXISTS', S .. 'log:' .. H.thread) == 1 then return '{"status":"rebuild"}' end
local known = call('HGET', S .. 'runs:' .. H.thread, H.run)
if known then
  local word, entry, sum = string.match(known, '^(%S+) (%S+) (%S*)')
  out.status, out.entry, out.run = sum == H.sum and 'attached' or 'conflict', entry, word
  if H.own and T.status == 'running' and resent() then return finish() end
  return cjson.encode(out)
end
local busy = T and T.status == 'running'
local onward = H.kind == 'continue' or H.kind == 'resume'
if busy and (H.mode == 'reject' or onward) then return '{"status":"busy"}' end
if onward then
  if not T or T.left + T.failed + T.asked == 0 or T.status == 'done' then return '{"status":"nothing"}' end
  if T.left + T.failed + #H.answers == 0 then return '{"status":"asked"}' end
  if (T.cleaning or '') ~= '' then return '{"status":"busy"}' end
  if H.at and (T.n ~= H.at[1] or T.digest ~= H.at[2]) then return '{"status":"stale"}' end
  for _, a in ipairs(H.answers) do
    local rec = a[2] ~= '' and record(H.thread, a[1])
    if a[2] ~= '' and not (rec and rec.p == 'asked' and rec.i == a[2]) then return '{"status":"stale"}' end
  end
end

call('LLEN', R .. 'queue:' .. H.queue) -- what can't be queued is not written
local fields = { unpack(ARGV, 2, 1 + H.count) }
if not T then
  T = { birth = H.birth, n = 0, digest = H.birth, step = -2, jid = H.jid, left = 0, failed = 0, asked = 0, jobs = 0, width = 0, rec = '' }
  fields[#fields + 1] = 'birth'
  fields[#fields + 1] = H.birth
end
if not busy then
  fields[#fields + 1] = 'step'
  fields[#fields + 1] = H.base or T.step
end
if onward then
  fields[#fields + 1] = 'of'
  fields[#fields + 1] = T.rec
end
local entry = call('XADD', S .. 'log:' .. H.thread, T.n .. '-*', 'v', '1', 'kind', busy and 'run_queued' or 'run_started',
  'at', NOW, 'run', H.run, unpack(fields))
threads[H.thread] = T
call('HSET', S .. 'runs:' .. H.thread, H.run, (busy and 'queued ' or 'running ') .. entry .. ' ' .. H.sum)
out.entry = entry
if busy then
  call('RPUSH', S .. 'queued:' .. H.thread, cjson.encode({ run = H.run, entry = entry, graph = H.graph, queue = H.queue,
    task = H.task, node = H.node }))
  out.status = 'queued'
  return finish()
end
out.status = 'started'
if onward then
  T.run, T.base, T.conf = H.run, T.step, entry
  T.left, T.failed, T.jobs = T.left + T.failed, 0, 0
  for i, a in ipairs(H.answers) do
    local question = a[2] ~= '' and { 'question', a[2] } or {}
    local id = fact(H.thread, T, 'task_answered', 'task', a[1], 'answer', ARGV[1 + H.count + i], unpack(question))
    if a[2] == '' then
      T.early, T.early_task = id, a[1]
    else
      local rec = record(H.thread, a[1])
      rec.an, rec.i, rec.p = rec.an and rec.an .. ' ' .. id or id, nil, 'stopped'
      keep(H.thread, a[1], rec)
      T.asked, T.left = T.asked - 1, T.left + 1
    end
  end
  status(H.thread, T, 'running')
  call('LPUSH', S .. 'unmade:' .. H.thread, cjson.encode({ reopen = '0' }))
  if H.own then
    make(H.thread, T, function() return #H.tokens > 0 end,
      function(task, rec) if #H.tokens > 0 then lease(H.thread, T, task, rec, table.remove(H.tokens, 1)) else push(H.thread, T, task, rec) end end)
  else
    make_jobs(H.thread, T)
  end
else
  local rec = begin(H.thread, T, H.run, entry, H.node, H.graph, H.queue)
  T.base = H.base or T.base
  if H.own then lease(H.thread, T, H.task, rec, table.remove(H.tokens, 1)) else push(H.thread, T, H.task, rec) end
end
return finish()
