# libiresnet_deepstream.so: in a DeepStream 8.0 container or later, with the CUDA toolkit.
DEEPSTREAM ?= /opt/nvidia/deepstream/deepstream
CUDA ?= /usr/local/cuda
CXXFLAGS += -std=c++17 -O2 -Wall -fPIC -I$(DEEPSTREAM)/sources/includes \
  -I$(DEEPSTREAM)/sources/gst-plugins/gst-nvdspreprocess/include -I$(CUDA)/include \
  $(shell pkg-config --cflags gstreamer-1.0 glib-2.0 2>/dev/null)
LDLIBS += -L$(CUDA)/lib64 -lcudart -L$(DEEPSTREAM)/lib -lnvbufsurface -lnvbufsurftransform

LDLIBS += -lnvdsgst_meta -lnvds_meta $(shell pkg-config --libs gstreamer-1.0 2>/dev/null)
SOURCES := iresnet_parser.cpp iresnet_tensor.cpp iresnet_probe.cpp

libiresnet_deepstream.so: $(SOURCES) labels.inc
	$(CXX) $(CXXFLAGS) -shared -o $@ $(SOURCES) $(LDLIBS)
