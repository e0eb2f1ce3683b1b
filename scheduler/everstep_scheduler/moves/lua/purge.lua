-- purge: walk one of RQ's keys and take out job ids of ours that stand where their task is not. 500 ids a call.
-- H: key kind(list|zset) place(the place this key shows) cursor(list: offset from the front; zset: ZSCAN cursor; '' = begin)
--    kind = jobs: ids = {...}, job hashes to look at
--    all = 1: every job of ours goes, whatever its task says (a rebuild makes them anew); lock = whose rebuild
-- Answers JSON: status = ok | lost (the lock); removed; cursor ('' at the end)
if H.lock and call('GET', S .. 'recovery') ~= H.lock then return '{"status":"lost"}' end

local function stays(id)
  local named, why = ours(id)
  if why then return true end
  if not named then return false end
  local _, rec
  if not H.all then _, rec = opened(named.thread, named.task) end
  if rec and rec.j == id and rec.p == H.place then return true end
  if H.all then call('DEL', R .. 'job:' .. id) end
  return false
end

local removed, cursor = 0, ''
if H.kind == 'list' then
  local from = tonumber(H.cursor) or 0
  local ids = show('LRANGE', H.key, from, from + 499)
  if ids.err then ids = {} end -- a key of another type has no jobs
  for _, id in ipairs(ids) do
    if not stays(id) then removed = removed + call('LREM', H.key, 1, id) end
  end
  if #ids == 500 then cursor = tostring(from + 500 - removed) end
elseif H.kind == 'zset' then
  local page = show('ZSCAN', H.key, H.cursor == '' and '0' or H.cursor, 'COUNT', 500)
  if page.err then page = { '0', {} } end
  for i = 1, #page[2], 2 do
    local id = string.match(page[2][i], '^[^:]+')
    if not stays(id) then removed = removed + call('ZREM', H.key, page[2][i]) end
  end
  if page[1] ~= '0' then cursor = page[1] end
else
  for _, id in ipairs(H.ids) do
    if show('HEXISTS', R .. 'job:' .. id, 'data') == 1 and not stays(id) then removed = removed + 1 end
  end
end
return cjson.encode({ status = 'ok', removed = removed, cursor = cursor })
