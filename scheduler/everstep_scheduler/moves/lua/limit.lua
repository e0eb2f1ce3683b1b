-- limit: a graph's limits are these from now on. Whoever waits at a gate is looked at again.
-- H: graph limits = {node -> {id, c, n, ms, k}} (JSON, empty: it has none)
-- Answers JSON: status = ok | same
local LINES_MAX = 1000
local key, listed, line = S .. 'limits:' .. H.graph, S .. 'limited', '\n' .. H.graph .. '\n'
local graphs = call('GET', listed) or '\n'
local from, to = string.find(graphs, line, 1, true)
if (call('GET', key) or '') == H.limits and (from ~= nil) == (H.limits ~= '') then return '{"status":"same"}' end
if H.limits == '' then
  call('DEL', key)
  if from then graphs = string.sub(graphs, 1, from) .. string.sub(graphs, to + 1) end
else
  call('SET', key, H.limits)
  if not from then graphs = graphs .. H.graph .. '\n' end
end
if graphs == '\n' then call('DEL', listed) else call('SET', listed, graphs) end
-- the sweep looks at the others, if there are more
for _, gate in ipairs(call('SRANDMEMBER', S .. 'lines', LINES_MAX)) do call('ZADD', S .. 'wakes', NOW, 'line ' .. gate) end
return '{"status":"ok"}'
