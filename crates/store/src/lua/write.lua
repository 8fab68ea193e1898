-- KEYS: lease, fence, index, then one per change.
-- ARGV: holder, fence, then for each change: 'put' or 'del', name in the index, value.
-- Returns {1}, or {0, newest fence} when the lease was lost: then nothing was changed.
local newest = tonumber(redis.call('GET', KEYS[2]) or '0')
if redis.call('GET', KEYS[1]) ~= ARGV[1] or newest ~= tonumber(ARGV[2]) then
    return {0, newest}
end
for i = 4, #KEYS do
    local at = 3 + (i - 4) * 3
    if ARGV[at] == 'put' then
        redis.call('SET', KEYS[i], ARGV[at + 2])
        redis.call('ZADD', KEYS[3], 0, ARGV[at + 1])
    else
        redis.call('DEL', KEYS[i])
        redis.call('ZREM', KEYS[3], ARGV[at + 1])
    end
end
return {1, newest}
