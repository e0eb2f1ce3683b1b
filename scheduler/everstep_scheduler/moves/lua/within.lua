-- within: entries of logs that an attempt keeps itself: of graphs that its node called. All of them, or none.
-- Only for whoever holds the task: once its lease is gone, nothing of that attempt comes into these logs any more. Or, to edit
-- one of them, for anybody while the thread is at rest, for then nobody can be at work there.
-- H: thread n digest task token, or thread rests=1
--    logs = { {suffix of the key, last, { {id, kind, number of arguments}, ... }}, ... }: the entries behind ARGV[1] belong
--      behind `last`, the id at the end of that log; '' for one that is not there yet. They carry ids of their own.
-- Entries that stand there already, just as they are given, are a resend: it is told ok, and written once.
-- Answers JSON: status = ok | fenced | moved (a log ends elsewhere: its key, and where) | busy, unknown (rests) | rebuild
if not alive() then return '{"status":"rebuild"}' end
if H.rests then
  local T = load(H.thread)
  if not T then return '{"status":"unknown"}' end
  if T.status == 'running' or (T.cleaning or '') ~= '' then return '{"status":"busy"}' end
else
  local _, _, holds = attempt()
  if not holds then return '{"status":"fenced"}' end
end

-- Do these entries stand at the end of the log, as they are given?
local function stands(found, heads, at)
  if #found ~= #heads then return false end
  for i, head in ipairs(heads) do
    local id, fields = found[i][1], found[i][2]
    if id ~= head[1] or fields[4] ~= head[2] or #fields ~= 6 + head[3] then return false end
    for j = 1, head[3] do
      if fields[6 + j] ~= ARGV[at + j - 1] then return false end
    end
    at = at + head[3]
  end
  return true
end

local at, new = AT, {}
for _, log in ipairs(H.logs) do
  local key, last, heads = S .. log[1], log[2], log[3]
  local tail = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if (tail and tail[1] or '') == last then
    new[#new + 1] = { key, heads, at }
  elseif not stands(call('XRANGE', key, last == '' and '-' or '(' .. last, '+', 'COUNT', #heads + 1), heads, at) then
    return cjson.encode({ status = 'moved', key = log[1], last = tail and tail[1] or '' })
  end
  for _, head in ipairs(heads) do at = at + head[3] end
end
for _, each in ipairs(new) do
  local from = each[3]
  for _, head in ipairs(each[2]) do
    call('XADD', each[1], head[1], 'v', '1', 'kind', head[2], 'at', NOW, unpack(ARGV, from, from + head[3] - 1))
    from = from + head[3]
  end
end
return '{"status":"ok"}'
