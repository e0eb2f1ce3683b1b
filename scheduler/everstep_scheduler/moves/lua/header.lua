-- What a script was asked, as a JSON object; the arguments of its entries follow from ARGV[AT] on.
local AT, H = 2, cjson.decode(ARGV[1])
