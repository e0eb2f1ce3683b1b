-- migrate: open tasks go on as other nodes, or are done without a word. Grows the log: a full server refuses it whole.
-- H: thread n digest(of the checkpoint whose tasks they are) actor salt
--    tasks = { {task, node it has, node it gets, queue, timeout_s, [signature]}, ... } (at most 250)
--    run: the run under way, where entries are signed, for they name it
--    ended = { {task, node it has}, ... }, each with its hashed entry among `entries`: their edges lead nowhere
-- What somebody holds, or what is another node by now, is left alone. `ended` only while the run is under way.
-- Answers JSON: status = ok | moved (another checkpoint) | unknown | rebuild; moved = the tasks it changed
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
if not T then return '{"status":"unknown"}' end
if T.n ~= H.n or T.digest ~= H.digest or (H.run and T.run ~= H.run) then return '{"status":"moved"}' end
local KEEPS_GOING = { parked = 1, job = 1, wake = 1, line = 1 }
local RESTS = { failed = 1, stopped = 1, asked = 1 }
for _, m in ipairs(H.tasks) do call('LLEN', R .. 'queue:' .. m[4]) end -- what can't be queued is not written
out.status, out.moved = 'ok', {}

local function open_as(task, node)
  local rec = record(H.thread, task)
  return rec and rec.n == node and (KEEPS_GOING[rec.p] or RESTS[rec.p]) and rec or nil
end

for _, m in ipairs(H.tasks) do
  local task, rec = m[1], open_as(m[1], m[2])
  if rec then
    fact(H.thread, T, 'task_moved', 'task', task, 'node', m[3], 'queue', m[4], 'timeout_s', m[5], 'actor', H.actor,
      unpack(m[6] and { 'sig', m[6] } or {}))
    local goes = KEEPS_GOING[rec.p]
    if goes or rec.p == 'failed' then leave(H.thread, T, task, rec, true) end
    if rec.g then gates.let_go(rec) end
    rec.n, rec.q, rec.w = m[3], m[4], m[5]
    if goes then
      push(H.thread, T, task, rec)
    elseif rec.p == 'failed' then
      show_failed(H.thread, T, task, rec, rec.r)
      keep(H.thread, task, rec)
    else
      keep(H.thread, task, rec)
    end
    out.moved[#out.moved + 1] = task
  end
end
local at = 2
for i, m in ipairs(H.ended) do
  local entry, task = H.entries[i], m[1]
  local rec = T.status == 'running' and open_as(task, m[2])
  if rec and KEEPS_GOING[rec.p] then
    call('XADD', S .. 'log:' .. H.thread, entry[1], 'v', '1', 'kind', entry[2], 'at', NOW, 'run', T.run,
      unpack(ARGV, at, at + entry[3] - 1))
    leave(H.thread, T, task, rec, true)
    forget_job(rec)
    keep(H.thread, task, { p = 'done', a = rec.a, n = rec.n, q = rec.q, w = rec.w })
    resolved(H.thread, T)
    out.moved[#out.moved + 1] = task
  end
  at = at + entry[3]
end
if #out.moved == 0 then out.moved = nil end
return finish()
