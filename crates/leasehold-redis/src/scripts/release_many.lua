-- Gives back several exclusive locks: what release.lua does, for each. KEYS: locks. ARGV: the value of each.
-- The number of keys if all were freed. Else for each 1, 0, or an error.
local call, other = redis.pcall, nil
for i, lock in ipairs(KEYS) do
  local seen, answer = call('GETEX', lock), 0
  if seen == ARGV[i] then
    answer = call('DEL', lock)
  elseif type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
    answer = seen
  end
  if answer ~= 1 then
    other = other or {}
    other[i] = answer
  end
end
if not other then
  return #KEYS
end
for i = 1, #KEYS do
  other[i] = other[i] or 1
end
return other
