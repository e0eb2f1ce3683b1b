-- part: a piece of what the coming commit will name: a Send chunk, a piece of a snapshot. Means nothing until named.
-- Or an effect (`effect_done`): it counts at once, for this task. Its record keeps the id of the first one.
-- H: thread n digest task token entries
-- Answers JSON: status = ok | fenced | rebuild; ids
if not alive() then return '{"status":"rebuild"}' end
local T = load(H.thread)
local rec = T and record(H.thread, H.task)
if not rec or rec.p ~= 'lease' or rec.t ~= H.token or T.n ~= H.n or T.digest ~= H.digest or T.status ~= 'running' then
  return '{"status":"fenced"}'
end
local ids = append(H.thread)
if not rec.e and H.entries[1][2] == 'effect_done' then
  rec.e = ids[1]
  keep(H.thread, H.task, rec)
end
return cjson.encode({ status = 'ok', ids = ids })
