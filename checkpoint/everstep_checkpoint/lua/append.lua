-- append: entries behind an exact predecessor, all or nothing.
-- KEYS[1] the log. KEYS[2] the thread's hash. ARGV[1] n and ARGV[2] digest of the last checkpoint ('' for a new log);
-- then per entry: kind, number of arguments, arguments.
-- Answers the ids, or EVERSTEP conflict <n> <digest>.
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local n, digest = '', ''
if last then
  n = string.match(last[1], '^%d+')
  local wanted = n == '0' and 'birth' or 'digest'
  local entry = call('XRANGE', KEYS[1], n == '0' and '0-1' or n .. '-0', n == '0' and '0-1' or n .. '-0')[1]
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == wanted then digest = entry[2][i + 1] end
  end
end
if n ~= ARGV[1] or digest ~= ARGV[2] then
  return redis.error_reply('EVERSTEP conflict ' .. (n == '' and '-' or n) .. ' ' .. digest)
end
local at, ids, step = 3, {}, tonumber(n) or 0
local head
while at <= #ARGV do
  local kind, count = ARGV[at], tonumber(ARGV[at + 1])
  local id = step .. '-*'
  if kind == 'checkpoint' then
    step = step + 1
    id = step .. '-0'
    head = at + 2
  end
  ids[#ids + 1] = call('XADD', KEYS[1], id, 'v', '1', 'kind', kind, 'at', now, unpack(ARGV, at + 2, at + 1 + count))
  at = at + 2 + count
  if head then
    for i = head, at - 1, 2 do
      if ARGV[i] == 'digest' then digest = ARGV[i + 1] end
    end
  end
end
if head and call('EXISTS', KEYS[2]) == 1 then call('HSET', KEYS[2], 'n', step, 'digest', digest) end
return ids
