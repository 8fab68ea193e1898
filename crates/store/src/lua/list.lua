-- KEYS: index. ARGV: prefix of value keys, lower and upper bound of names. Returns name, value, ...
-- A name whose value has ended is dropped from the index on the way.
local names = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3])
local found = {}
-- MGET's arguments go over Lua's stack, which is small.
for from = 1, #names, 1000 do
    local keys = {}
    for i = from, math.min(from + 999, #names) do
        keys[#keys + 1] = ARGV[1] .. names[i]
    end
    local values = redis.call('MGET', unpack(keys))
    for i, value in ipairs(values) do
        if value then
            found[#found + 1] = names[from + i - 1]
            found[#found + 1] = value
        else
            redis.call('ZREM', KEYS[1], names[from + i - 1])
        end
    end
end
return found
