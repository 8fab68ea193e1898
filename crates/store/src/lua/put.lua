-- KEYS: value, index, expiring.
-- ARGV: prefix of value keys, name in the index, value, ttl in ms or '', 'absent' or 'any'.
-- Returns 1, or 0 if the key was there and had to be absent.
local ttl = ARGV[4]
if ARGV[5] == 'absent' and redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
end
if ttl == '' then
    redis.call('SET', KEYS[1], ARGV[3])
else
    redis.call('SET', KEYS[1], ARGV[3], 'PX', ttl)
    -- Redis forgets the value by itself; the index must be told. Each new entry clears up to 16
    -- dead ones, so that the index never grows beyond what is alive by more than what has died
    -- since the last put. A value still lives in the millisecond of its end.
    local time = redis.call('TIME')
    local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
    local dead = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. now, 'LIMIT', 0, 16)
    for _, name in ipairs(dead) do
        -- -2: gone; -1: written again for good. What is still about to end is left for the next put.
        local left = redis.call('PTTL', ARGV[1] .. name)
        if left < 0 then
            redis.call('ZREM', KEYS[3], name)
        end
        if left == -2 then
            redis.call('ZREM', KEYS[2], name)
        end
    end
    redis.call('ZADD', KEYS[3], string.format('%d', now + ttl), ARGV[2])
end
redis.call('ZADD', KEYS[2], 0, ARGV[2])
return 1
