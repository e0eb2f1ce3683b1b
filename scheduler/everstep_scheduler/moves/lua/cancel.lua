-- cancel: a revocation. Waits for nobody; no commit of the run passes after it. Begins with a write a full server allows.
-- H: thread run('' = the one under way) actor salt delete(1: forget the thread after its last task left its place)
-- Answers JSON: status = cancelled | rested | unknown | rebuild; more = 1: call again, tasks are still in their places
if not alive() then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
local T = load(H.thread)
if not T then return '{"status":"unknown"}' end

-- Take open tasks out of their places, about 250 records a call. The answer is the cursor to go on from, '' at the end.
local function withdraw(cursor)
  local seen = 0
  repeat
    local page = call('HSCAN', S .. 'open:' .. H.thread, cursor, 'COUNT', 100)
    cursor = page[1]
    for i = 1, #page[2], 2 do
      local rec = cjson.decode(page[2][i + 1])
      seen = seen + 1
      if rec.p ~= 'done' and rec.p ~= 'stopped' and rec.p ~= 'failed' then
        leave(H.thread, T, page[2][i], rec, true)
        forget_job(rec)
        rec.p, rec.t, rec.o = 'stopped', nil, nil
        keep(H.thread, page[2][i], rec)
      end
    end
  until cursor == '0' or seen >= MOVE_MAX
  return cursor == '0' and '' or cursor
end

local function unqueue_run()
  for _, element in ipairs(call('LRANGE', S .. 'queued:' .. H.thread, 0, -1)) do
    if cjson.decode(element).run == H.run then
      call('LREM', S .. 'queued:' .. H.thread, 1, element)
      return true
    end
  end
end

out.status = 'cancelled'
if (T.cleaning or '') ~= '' then
  T.cleaning = withdraw(T.cleaning)
elseif H.run ~= '' and H.run ~= T.run then
  if not unqueue_run() then
    return cjson.encode({ status = call('HEXISTS', S .. 'runs:' .. H.thread, H.run) == 1 and 'rested' or 'unknown' })
  end
  call('XADD', S .. 'log:' .. H.thread, T.n .. '-*', 'v', '1', 'kind', 'run_rested', 'at', NOW, 'run', H.run, 'status', 'cancelled',
    'actor', H.actor)
  run_is(H.thread, H.run, 'cancelled')
elseif T.status ~= 'running' then
  return '{"status":"rested"}'
else
  fact(H.thread, T, 'run_cancel_asked', 'actor', H.actor)
  T.cleaning = withdraw('0')
  local left = T.left + T.failed
  T.failed = 0
  rest(H.thread, T, 'cancelled', 'actor', H.actor)
  if T.status == 'cancelled' then T.left = left end
end
if T.cleaning and T.cleaning ~= '' then out.more = 1 end
return finish()
