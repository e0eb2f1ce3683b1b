-- commit: an attempt's outcome, and with the last one of a step the next checkpoint and its tasks. Then refill.
-- H: thread n digest task token run owner salt                   the attempt; fenced by token and (n, digest)
--    outcome = next | done | failed | retry | unplanned | paused | handled | called | left    what it came to
--    entries                                                      what it adds to the log, hashed by the caller
--    head = {n, digest, step}, next = rows, parts = {id -> tasks JSON}, stop = '' | failed | interrupted, why   (next)
--    reason, delay_ms (none: at once)                             (failed, unplanned, retry)
--    question = ids with spaces, '' at a breakpoint; kept = answers that hold good      (paused)
--    handler = {node, queue, timeout s}                           (handled; the first of its entries is the failure)
--    call = the run that it calls, as start takes it, its arguments behind those of the entries; or {thread, run, waits = 1}:
--    that run is under way already; kept                          (called)
--    ahead = ids of the parts that the attempt wrote before
--    tokens queues proc lease_ms spare                            refill;  own=1: only from this thread (inline)
-- Answers JSON: status = ok | already | fenced | rebuild; leases
local living, suspended = alive()
if not living then return '{"status":"rebuild"}' end
local T, rec, holds = attempt()

local function is_mine(id)
  local found = call('XRANGE', S .. 'log:' .. H.thread, id, id)[1]
  for i = 1, found and #found[2] or 0, 2 do
    if found[2][i] == 'token' and found[2][i + 1] == H.token then return true end
  end
  return false
end

local function passed_before()
  if rec and rec.p ~= 'lease' and rec.t == H.token then return true end
  return is_mine(H.n + 1 .. '-0') or is_mine(H.n + 2 .. '-0') -- by exact ids: the facts between them may be many
end

-- Is all there that the entries name? A replica that took over may have the lease and lack the parts, and a part that came
-- later then has the id of one before it.
local function stands_ahead()
  local seen = {}
  for _, id in ipairs(H.ahead or {}) do
    if seen[id] or not is_mine(id) then return false end
    seen[id] = true
  end
  return true
end

if not holds then
  out.status = passed_before() and 'already' or 'fenced'
  call('DEL', S .. 'nothing') -- a full server lets a zombie know, too
  if out.status == 'fenced' then show('HINCRBY', S .. 'stats', 'fenced', 1) end
  resent()
  return finish()
end
if H.outcome == 'next' and T.left ~= 1 then return redis.error_reply('EVERSTEP a step was closed with open tasks') end
for _, r in ipairs(H.next or {}) do
  if #r > 2 then call('LLEN', R .. 'queue:' .. r[3]) end -- what can't be queued is not written
end
if H.handler then call('LLEN', R .. 'queue:' .. H.handler[2]) end

local own = T.own
local function sleep(delay_ms)
  rec.p, rec.o, rec.s, rec.k = 'wake', nil, nil, 0
  call('ZADD', S .. 'wakes', NOW + delay_ms, place_of(H.thread, T, H.task))
  if rec.j then
    call('HSET', R .. 'job:' .. rec.j, 'status', 'scheduled')
    show('ZADD', R .. 'scheduled:' .. queue_of(rec), math.ceil((NOW + delay_ms) / 1000), rec.j)
  end
  keep(H.thread, H.task, rec)
end

-- The thread that is called has moved since it was looked at, or its log takes no entry: the task looks again, uncounted.
local CALL_AGAIN_MS, C = 500, nil
local function can_call()
  C = load(H.call.thread)
  if H.call.waits then
    local word = call('HGET', S .. 'runs:' .. H.call.thread, H.call.run)
    word = word and string.match(word, '^%S+')
    return word == 'running' or word == 'queued'
  end
  local last = call('XREVRANGE', S .. 'log:' .. H.call.thread, '+', '-', 'COUNT', 1)[1]
  if last and tonumber(string.match(last[1], '^%d+')) > (C and C.n or -1) then return false end
  call('LLEN', R .. 'queue:' .. H.call.queue)
  return not refusal(H.call, C)
end

local function open_again()
  unlease(rec)
  rec.a = rec.a - 1
  H.outcome = 'again'
end

out.status = 'ok'
if #(H.entries or {}) == 0 or not stands_ahead() then -- of an attempt that was told that it is over there is nothing
  open_again()
  hand(H.thread, T, H.task, rec)
  out.status = 'fenced'
end

if H.outcome == 'called' then
  C = load(H.call.thread)
  if not C and call('EXISTS', S .. 'log:' .. H.call.thread) == 1 then return '{"status":"rebuild"}' end
  if not can_call() then
    open_again()
    if H.call.waits then hand(H.thread, T, H.task, rec) else sleep(CALL_AGAIN_MS) end
  end
end

local behind = AT -- the arguments of a call come behind those of the entries
for _, entry in ipairs(H.entries or {}) do behind = behind + entry[3] end
local ids = {}
if H.outcome ~= 'again' then
  ids = append(H.thread)
  unlease(rec)
end
T.updated = NOW
if H.outcome == 'next' then
  forget_job(rec)
  call('UNLINK', S .. 'open:' .. H.thread)
  T.n, T.digest, T.step = H.head[1], H.head[2], H.head[3]
  open_step(H.thread, T, H.next, H.stop == '' and not H.own)
  if T.width == 0 then
    rest(H.thread, T, 'done')
  elseif H.stop ~= '' then
    if H.why then rest(H.thread, T, H.stop, 'error', H.why) else rest(H.thread, T, H.stop) end
  end
elseif H.outcome == 'done' then
  forget_job(rec)
  keep(H.thread, H.task, { p = 'done', t = H.token, a = rec.a, n = rec.n, q = rec.q, w = rec.w })
  resolved(H.thread, T)
elseif H.outcome == 'failed' then
  rec.s, rec.k = nil, 0
  fail(H.thread, T, H.task, rec, H.reason)
elseif H.outcome == 'unplanned' then
  forget_job(rec)
  keep(H.thread, H.task, { p = 'done', t = H.token, a = rec.a, n = rec.n, q = rec.q, w = rec.w })
  fail(H.thread, T, 'join', fresh_record('__join__', T.queue, 0), H.reason)
elseif H.outcome == 'paused' then
  forget_job(rec)
  if T.early_task == H.task then T.early = '' end
  keep(H.thread, H.task, { p = H.question and 'asked' or 'stopped', t = H.token, a = rec.a, l = rec.l, n = rec.n, q = rec.q, w = rec.w,
    i = H.question, an = H.kept, c = rec.c, cl = rec.cl, ct = rec.cl and 1 or nil, e = rec.e,
    u = (T.over or '') ~= '' and #T.over or nil })
  if H.question then T.asked = T.asked + 1 else T.halted = T.halted + 1 end
  resolved(H.thread, T)
elseif H.outcome == 'handled' then -- the step waits for the handler instead: what keeps the run going is as many as before
  forget_job(rec)
  keep(H.thread, H.task, { p = 'done', t = H.token, a = rec.a, n = rec.n, q = rec.q, w = rec.w })
  local handler = fresh_record(H.handler[1], H.handler[2], H.handler[3])
  handler.c = ids[1]
  local token = not rec.f and table.remove(H.tokens or {}, 1)
  if rec.f then hand(H.thread, T, 'h_' .. H.task, handler) -- in turn, as any task of its key
  elseif token then lease(H.thread, T, 'h_' .. H.task, handler, token)
  else push(H.thread, T, 'h_' .. H.task, handler, true) end
elseif H.outcome == 'called' then
  forget_job(rec)
  if T.early_task == H.task then T.early = '' end
  -- no attempt at the node has ended: it is not counted
  keep(H.thread, H.task, { p = 'child', t = H.token, a = rec.a - 1, l = rec.l, n = rec.n, q = rec.q, w = rec.w, an = H.kept, e = rec.e,
    cl = H.call.run .. ' ' .. H.call.thread })
  if not H.call.waits then
    local _, begun = begin_run(H.call, C, behind, function(task, r) hand(H.call.thread, threads[H.call.thread], task, r) end)
    if begun and goes_on(H.call) then make_on(H.call.thread, threads[H.call.thread]) end
  end
elseif H.outcome == 'left' then -- the run ends here, and what it says is for its caller: the entry was its rest
  forget_job(rec)
  rec.p, rec.o = 'stopped', nil
  keep(H.thread, H.task, rec)
  stop_all(H.thread, T)
  rest(H.thread, T, 'done')
elseif H.outcome == 'retry' then
  if rec.cl then rec.ct = 1 end
  sleep(H.delay_ms or 0)
end

if H.own and H.tokens then
  make_own(H.thread, T)
elseif H.tokens and not suspended then
  if T.width > 1 and T.status == 'running' then make_jobs(H.thread, T) end
  refill()
  wait_for_work()
end
out.run_status = T.run == H.run and T.status or 'rested'
if own and own == H.caller and out.run_status ~= 'running' then call('ZREM', S .. 'callers', own) end
return finish()
