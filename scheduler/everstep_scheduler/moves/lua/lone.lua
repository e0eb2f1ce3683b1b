-- What a usual checkpoint says: the rest stands in what is said of its commit.
local USUAL = 9
local function usual(at, owner, run, task, token, step, digest)
  local graph, node, attempt, queue, started, took, next_rows, delta, writes = unpack(ARGV, at, at + USUAL - 1)
  return 'source', 'loop', 'step', step, 'graph', graph, 'run', run, 'by', owner, 'node', node, 'task', task, 'attempt', attempt,
    'token', token, 'queue', queue, 'started', started, 'ms', took, 'next', next_rows, 'delta', delta, 'writes', writes, 'digest', digest
end
-- lone: a plain commit that came alone, with one usual checkpoint, whose next task is leased at once since nothing waits in the
-- queues. It is what `plain` behind this would do, straight on. Where it is anything else nothing is written, and `plain` decides.
-- It answers with a line: the time, the token of what ended, the job that began.
if ARGV[1] == 'plain' and ARGV[8] == '1' and ARGV[9] ~= '0' then
  local rq, owner, salt, lease_ms, proc, _, _, tokens, queues, fresh = unpack(ARGV, 2, 11)
  local at, here = 11 + tokens + queues, false
  lease_ms = 0 + lease_ms -- as `plain` writes it
  local thread, n, digest, task, token, run, head_n, head_digest, head_step, next_task, next_node, next_queue, timeout, named, place,
    before, size = unpack(ARGV, at, at + 16)
  if next_task ~= '' and before == '0' and size == '0' then
    local S, R, call, show = KEYS[1], rq .. ':', redis.call, redis.pcall
    local key, open, me = S .. 'thread:' .. thread, S .. 'open:' .. thread, cjson.encode(owner)
    local stands = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended', S .. 'limited')
    local T = show('HMGET', key, 'n', 'digest', 'status', 'left', 'width', 'run', 'own', 'early', 'over', 'graph', 'jid', 'queue')
    local text = show('HGET', open, task)
    local q, o, t, j = string.match(type(text) == 'string' and text or '',
      '^{"p":"lease","a":%d+,"n":"[^"]*","q":"([^"\\]*)","w":[%d.]+,"o":("[^"]*"),"t":"([^"]*)","L":%d+,"j":"([^"]*)"}$')
    local mine = q and o == me and t == token and stands[1] and stands[2] and not stands[3] and not stands[4]
      and T[1] == n and T[2] == digest and T[3] == 'running' and T[4] == '1' and T[5] == '1' and T[6] == run
      and (T[7] or '') == '' and (T[8] or '') == '' and not T[9] and T[10] and T[11]
    for i = 1, mine and queues or 0 do
      local queue = ARGV[10 + tokens + i]
      mine, here = mine and show('LLEN', R .. 'queue:' .. queue) == 0, here or queue == next_queue
      if here and tokens == '1' then break end
    end
    if mine and here then
      local clock = call('TIME')
      local ms = string.format('%d%03d', clock[1], math.floor(clock[2] / 1000))
      local date, till = iso(0 + ms), string.format('%d', ms + lease_ms)
      local job = T[11] .. '-' .. head_n .. '-' .. next_task .. '-1-' .. salt
      local id = show('XADD', S .. 'log:' .. thread, head_n .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms,
        usual(at + 17, owner, run, task, token, head_step, head_digest))
      if type(id) ~= 'string' then return id end -- its log takes no such entry
      call('ZREM', S .. 'leases', token)
      call('HDEL', S .. 'lease', token)
      call('HDEL', S .. 'held:' .. owner, token)
      show('ZREM', R .. 'wip:' .. q, j .. ':' .. token)
      call('DEL', R .. 'job:' .. j)
      if next_task ~= task then call('UNLINK', open) end -- else its record takes this one's place
      call('HSET', R .. 'job:' .. job, 'everstep', named, 'data', '["everstep.run_node",null,[],' .. named .. ']',
        'origin', next_queue, 'status', 'started', 'timeout', 0 + timeout > 0 and math.ceil(timeout) or '-1',
        'created_at', date, 'enqueued_at', date, 'description', T[10] .. '/' .. thread .. '#' .. head_n .. ' ' .. next_node,
        'result_ttl', '0', 'worker_name', owner, 'started_at', date)
      if next_queue ~= T[12] then show('SADD', R .. 'queues', R .. 'queue:' .. next_queue) end
      call('HSET', key, 'n', head_n, 'digest', head_digest, 'step', head_step, 'updated', ms)
      call('HSET', open, next_task, '{"p":"lease","a":1,' .. place .. ',"o":' .. me .. ',"t":"' .. fresh .. '","L":' .. lease_ms
        .. ',"j":"' .. job .. '"}')
      call('ZADD', S .. 'leases', till, fresh)
      call('HSET', S .. 'lease', fresh, next_task .. ' ' .. thread)
      call('HSET', S .. 'held:' .. owner, fresh, ms)
      show('ZADD', R .. 'wip:' .. next_queue, string.format('%d', math.floor(till / 1000) + 3600), job .. ':' .. fresh)
      if tokens ~= '1' and proc ~= '' then
        for i = 1, queues do show('ZADD', S .. 'waiting:' .. ARGV[10 + tokens + i], 'NX', ms, proc) end
      end
      return ms .. ' ' .. token .. ' ' .. job
    end
  end
end
