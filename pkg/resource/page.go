package resource

import "fmt"

// PageSize bounds the page size of a list (AIP-158): 0 is def, more than most is most, and less than 0 is refused as
// InvalidArgument.
func PageSize(n int32, def, most int) (int, error) {
	switch {
	case n < 0:
		return 0, invalid("page_size", fmt.Sprintf("less than 0; leave it out for %d, and more than %d gives %d", def, most, most))
	case n == 0:
		return min(def, most), nil
	}
	return min(int(n), most), nil
}
