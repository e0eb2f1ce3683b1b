-- cancel: a revocation. Waits for nobody; no commit of the run passes after it. Begins with a write a full server allows.
-- H: thread run actor salt; clean = 1: only go on with withdrawing tasks, after an answer with `more`
-- Answers JSON: status = cancelled | rested | unknown | rebuild; more = 1: call again, tasks are still in their places;
--    children = { {thread, run}, ... }: what its tasks called, to be cancelled next (the sweep does it, should nobody else)
--    looking: among many queued runs it is not found yet, call again with `seen`
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
local QUEUED_PAGE = 1000
local T = load(H.thread)
if not T then return '{"status":"unknown"}' end

-- Looked for from the end, where no run that starts moves the others, a page a call.
local function unqueue_run()
  local key, seen = S .. 'queued:' .. H.thread, H.seen or 0
  local page = call('LRANGE', key, -seen - QUEUED_PAGE, -seen - 1)
  local escaped = string.find(H.run, '["\\\\/]') -- JSON spells it differently
  for _, element in ipairs(page) do
    local q = (escaped or string.find(element, H.run, 1, true)) and decoded(element)
    if q and q.run == H.run then
      call('LREM', key, -1, element)
      return q
    end
  end
  out.seen = #page == QUEUED_PAGE and seen + QUEUED_PAGE or nil
end

out.status = 'cancelled'
if H.clean then
  if (T.cleaning or '') ~= '' then withdraw(H.thread, T, T.cleaning) end
elseif H.run ~= T.run then
  local q = unqueue_run()
  if not q then
    if out.seen then return cjson.encode({ status = 'looking', seen = out.seen }) end
    return cjson.encode({ status = call('HEXISTS', S .. 'runs:' .. H.thread, H.run) == 1 and 'rested' or 'unknown' })
  end
  call('XADD', S .. 'log:' .. H.thread, T.n .. '-*', 'v', '1', 'kind', 'run_rested', 'at', NOW, 'run', H.run, 'status', 'cancelled',
    'actor', H.actor)
  run_is(H.thread, H.run, 'cancelled')
  wake_caller(H.thread, { run = H.run, parent = q.parent })
elseif T.status ~= 'running' then
  return '{"status":"rested"}'
else
  revoke(H.thread, T, H.actor)
end
if T.cleaning and T.cleaning ~= '' then out.more = 1 end
return finish()
