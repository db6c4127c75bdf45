# tests: [{"call": "twoSum", "arguments": [[2, 7, 11, 15], 9], "expected": [0, 1]}, {"call": "twoSum", "arguments": [[3, 3], 6], "expected": [0, 1]}]
class Solution:
    def twoSum(self, nums, target):
        seen = {}
        for i, x in enumerate(nums):
            if target - x in seen:
                return [seen[target - x], i]
            seen[x] = i
