.PHONY: gen
gen: ## generate Go from proto/
	mkdir -p .bin .gen/third_party
	cd tools && go build -o ../.bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc github.com/bufbuild/buf/cmd/buf
	.bin/buf generate
